"""For every test: hypothesis without a stopwatch.

Its deadline is a timed assertion, and a machine shared with others fails those now and then.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "headrace",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("headrace")
