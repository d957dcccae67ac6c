"""The same scheduler code under a virtual clock: one seed, one history."""
