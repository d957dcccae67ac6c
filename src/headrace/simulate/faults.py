"""What goes wrong, and when."""

from __future__ import annotations

from typing import Protocol

import msgspec

from headrace.core.events import BatchLimits, Event, LimitsChanged


class Machine(Protocol):
    """What can be broken; ``simulator.Simulation`` is one."""

    now_ns: int

    def slow_down(self, instance: int, until_ns: int, factor: float) -> None: ...  # noqa: D102

    def hang(self, instance: int, until_ns: int) -> None: ...  # noqa: D102

    def crash(self, instance: int, back_ns: int) -> None: ...  # noqa: D102

    def restart(self, instance: int) -> None: ...  # noqa: D102

    def cancel_some(self, share: float) -> None: ...  # noqa: D102

    def jump(self, by_ns: int) -> None: ...  # noqa: D102

    def tell(self, event: Event) -> None: ...  # noqa: D102


class Fault(msgspec.Struct, frozen=True):
    """Something that happens to the machine at ``at_ns``."""

    at_ns: int

    def strike(self, machine: Machine) -> None:
        """Now."""
        raise NotImplementedError


class Slowdown(Fault, frozen=True):
    """An instance (a noisy neighbour's) takes ``factor`` times as long for a while."""

    instance: int
    for_ns: int
    factor: float

    def strike(self, machine: Machine) -> None:
        """Now."""
        machine.slow_down(self.instance, machine.now_ns + self.for_ns, self.factor)


class Hang(Fault, frozen=True):
    """What begins on an instance for a while is back only after it."""

    instance: int
    for_ns: int

    def strike(self, machine: Machine) -> None:
        """Now."""
        machine.hang(self.instance, machine.now_ns + self.for_ns)


class Crash(Fault, frozen=True):
    """An instance is gone with its batch, and back later."""

    instance: int
    back_after_ns: int

    def strike(self, machine: Machine) -> None:
        """Now."""
        machine.crash(self.instance, machine.now_ns + self.back_after_ns)


class CancelStorm(Fault, frozen=True):
    """A part of all callers leaves at once."""

    share: float

    def strike(self, machine: Machine) -> None:
        """Now."""
        machine.cancel_some(self.share)


class ClockJump(Fault, frozen=True):
    """The clock moves: forward at once, back by standing still."""

    by_ns: int

    def strike(self, machine: Machine) -> None:
        """Now."""
        machine.jump(self.by_ns)


class NewLimits(Fault, frozen=True):
    """A model is configured anew while it works."""

    model: int
    limits: BatchLimits

    def strike(self, machine: Machine) -> None:
        """Now."""
        machine.tell(LimitsChanged(self.model, self.limits))
