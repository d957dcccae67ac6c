"""One protocol each: bytes to types, one call into the engine, types to bytes."""
