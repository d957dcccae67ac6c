"""The gRPC services, over whichever transport: bytes to types, and one call into the engine."""
