"""Is headrace what it says it is? Asked of it by the real clients, beside the real Triton.

``python -m conformance table`` serves ``conformance/models`` and lets every client try every
feature; ``python -m conformance differential`` sends the same requests to Triton's own binary.
"""
