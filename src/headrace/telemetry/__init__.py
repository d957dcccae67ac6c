"""Watchers: told by hooks, never asked by the core."""
