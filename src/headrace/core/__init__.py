"""Pure decisions: events in, actions out. No clock, no I/O, no threads, no randomness."""
