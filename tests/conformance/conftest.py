"""Assertions of the shipped kits show the values that they compared."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("headrace.testing.runtime_kit")
