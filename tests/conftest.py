"""For every test: hypothesis without its deadline, and a garbage collector that has little to do.

The deadline is a timed assertion, and a machine shared with others fails those now and then. The
thousands of collected tests live to the end: frozen, they are not traversed again by each of the
many tests that call ``gc.collect``, which then takes milliseconds instead of half a second.
"""

from __future__ import annotations

import gc
import signal

from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "headrace",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
# Where only whether something fails matters, and not the smallest input that does.
settings.register_profile(
    "unshrunk",
    settings.get_profile("headrace"),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
settings.load_profile("headrace")


def pytest_configure() -> None:
    # A shell that starts us in the background has Ctrl-C ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
