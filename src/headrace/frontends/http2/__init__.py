"""HTTP/2 (RFC 9113), the lane that gRPC and HTTP/2 clients come in on.

``machine`` (what is received) and ``streams`` (what is sent) are the protocol without a socket:
bytes in, bytes out, streams in between. They know nothing of gRPC or of routes. ``connection``
gives them a transport, the lane's limits and timeouts; ``grpc_stream`` and ``http_stream`` are
the two kinds of streams there are. ``fields`` is HPACK and its memory, ``frames``, ``blocks`` and
``faults`` are what stands on the wire and what may be wrong with it.
"""
