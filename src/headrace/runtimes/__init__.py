"""Adapters to what computes: load, execute, unload."""
