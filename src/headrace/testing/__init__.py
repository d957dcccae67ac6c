"""Shipped for users: fakes, a manual clock, conformance kits."""

from headrace.testing.clock import ManualClock
from headrace.testing.fakes import FakeModel, FakeRuntime, Gate
from headrace.testing.runtime_kit import ModelCase, RuntimeKit

__all__ = ["FakeModel", "FakeRuntime", "Gate", "ManualClock", "ModelCase", "RuntimeKit"]
