"""Shipped for users: fakes, a manual clock, conformance kits."""
