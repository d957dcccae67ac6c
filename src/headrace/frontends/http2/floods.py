"""Bounds on frames that cost the server more than their sender: control frames and resets."""

from __future__ import annotations

from headrace.frontends.http2.faults import calm
from headrace.limits import Http2Limits

_USEFUL = 4
"""Control frames that one frame of use allows: WINDOW_UPDATE for the stream and the connection,
a PING to measure the round trip, an acknowledgement."""


class FloodGuard:
    """Counts them for one connection, against what use it is of."""

    def __init__(self, limits: Http2Limits) -> None:
        self.limits = limits
        self.opened_count = 0
        self.useful = 0
        """Frames of use, both ways, since the control frames that they allow were allowed."""

        self._controls = limits.max_control_frames
        self._resets = limits.max_resets
        self._resets_allowed = limits.max_resets
        self._resets_at = 0  # streams opened when resets were last allowed

    def relax(self) -> None:
        """Time has passed: a client that is slow is no flood. Called once a second at most."""
        self._controls = min(self.limits.max_control_frames, self._controls + _USEFUL)
        self._resets = min(self.limits.max_resets, self._resets + 1)

    def count_control(self) -> None:
        """A control frame.

        Raises:
            ConnectionFault: too many.
        """
        self._controls -= 1
        if self._controls < 0:
            self._controls = min(self.limits.max_control_frames, self.useful * _USEFUL)
            self.useful = 0
            if not self._controls:
                raise calm("max_control_frames", "control frames")

    def count_reset(self) -> None:
        """A stream that ended by a reset.

        Raises:
            ConnectionFault: too many.
        """
        self._resets -= 1
        if self._resets < 0:
            # What was allowed is used up; every stream since that was not cancelled allows one.
            well = self.opened_count - self._resets_at - (self._resets_allowed + 1)
            self._resets_at = self.opened_count
            self._resets_allowed = self._resets = min(self.limits.max_resets, well)
            if well <= 0:
                raise calm("max_resets", "cancelled streams")
