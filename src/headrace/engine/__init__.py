"""The only imperative room: owns the clock, the payloads and the instances; drives the core."""
