"""Which models there are, which version answers to a name, and what is wrong with the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from headrace.engine.served import ServedModel
from headrace.errors import ModelAbsent, ModelNotFound, ModelNotReady, without_folders
from headrace.types import ModelMetadata, ModelVersionStatus

UNLOADED = "unloaded"
"""Why a version is not served that somebody wanted gone; Triton's word."""

ABSENT = "not in memory: loaded when it is asked for"
"""Why a version is not served that is one request away from it."""

MAX_ENSEMBLE_DEPTH = 16
"""Ensembles within one another. A request runs through all of them on one stack, and each level
can multiply the steps; ensembles in use have two or three."""

MAX_ENSEMBLE_STEPS = 1000
"""Requests that one request to an ensemble leads to, those of ensembles within it included.
Sixteen levels of two steps each would be 65,536. One ensemble may have 100 steps."""

MAX_GONE = 1024
"""Versions that are shown and are neither served nor to be loaded when they are asked for, such as
those that could not be loaded: names that loads make up do not pile up."""

STABLE = "stable"
"""The alias that answers requests without a version."""


class Catalog:
    """Names and versions -> served models; the read side that the protocols' metadata needs."""

    def __init__(self) -> None:
        # (name, version) and (name, "") -> model: one look-up on the path of a request.
        self._routes: dict[tuple[str, str], ServedModel] = {}
        self._statuses: dict[tuple[str, str], ModelVersionStatus] = {}
        self._absent: set[tuple[str, str]] = set()
        self._gone: dict[tuple[str, str], None] = {}  # the one that left last is at the end
        self._aliases: dict[str, dict[str, str]] = {}

    def resolve(self, name: str, version: str = "") -> ServedModel:
        """The model that answers to a version or an alias; without one the version called
        "stable", or where there is no such alias the highest.

        Raises:
            ModelNotFound: no model of this name, or not in this version.
            ModelAbsent: one that is loaded when it is asked for.
            ModelNotReady: known, and not ready: the message says why.
        """
        try:
            return self._routes[name, version]
        except KeyError:
            # Not through a variable: this frame and the error would hold one another.
            raise self._missing(name, version) from None

    def metadata(self, name: str, version: str = "") -> ModelMetadata:
        """The public signature; without a version, all that are ready are named.

        Raises as :meth:`resolve`.
        """
        metadata = self.resolve(name, version).metadata
        if version:
            return metadata
        ready = [each.version for each in self.served() if each.name == name]
        return msgspec.structs.replace(metadata, versions=tuple(sorted(ready, key=_number)))

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """Triton's ModelConfig as JSON-able values. Raises as :meth:`resolve`."""
        return self.resolve(name, version).triton_config()

    def task_kind(self, name: str, version: str = "") -> str:
        """The name of the model's task ("tensor" for none). Raises as :meth:`resolve`."""
        task = self.resolve(name, version).task
        return "tensor" if task is None else task.kind

    def is_ready(self, name: str = "", version: str = "") -> bool:
        """One model, or with no name: all that are known, and at least one.

        An ensemble is only as ready as its steps.

        Raises:
            ModelNotFound: ``name`` was given and is not known.
        """
        if name:
            try:
                served = self.resolve(name, version)
            except ModelNotReady:
                return False
            return self._runs_whole(served)
        return bool(self._statuses) and all(s.state == "READY" for s in self.statuses())

    def _runs_whole(self, served: ServedModel) -> bool:
        """Whether it and all that it is made of can run; each is looked at once."""
        left, seen = [served], {served}
        while left:
            each = left.pop()
            if not each.serving:
                return False
            for step in each.config.ensemble:
                below = self._routes.get((step.model, step.version))
                if below is None:
                    return False
                if below not in seen:
                    seen.add(below)
                    left.append(below)
        return True

    def statuses(self) -> list[ModelVersionStatus]:
        """Every version known, sorted by name and version."""
        return [self._status(key) for key in sorted(self._statuses, key=_by_name_and_number)]

    def _status(self, key: tuple[str, str]) -> ModelVersionStatus:
        """One that is loaded and cannot run anything now is not ready."""
        status, served = self._statuses[key], self._routes.get(key)
        if served is not None and status.state == "READY" and (reason := served.unavailable):
            return msgspec.structs.replace(status, state="UNAVAILABLE", reason=reason)
        return status

    def set_status(self, name: str, version: str, state: str, reason: str = "") -> None:
        """Records what the index shows for a version."""
        told = without_folders(reason)  # callers see it
        key = name, version
        self._statuses[key] = ModelVersionStatus(name, version, state, told)
        self._gone.pop(key, None)
        if state == "UNAVAILABLE" and key not in self._absent:
            self._gone[key] = None
            if len(self._gone) > MAX_GONE:
                oldest = next(iter(self._gone))
                del self._gone[oldest], self._statuses[oldest]

    def publish(self, served: ServedModel) -> None:
        """Routes requests for this version to ``served`` from now on."""
        self._routes[served.name, served.version] = served
        self._absent.discard((served.name, served.version))
        self.set_status(served.name, served.version, "READY")
        self._update_routes(served.name)

    def set_aliases(self, name: str, aliases: dict[str, str]) -> None:
        """These names stand for these versions from now on, and no others."""
        if aliases:
            self._aliases[name] = dict(aliases)
        else:
            self._aliases.pop(name, None)
        self._update_routes(name)

    def aliases(self, name: str) -> dict[str, str]:
        """Alias -> version."""
        return dict(self._aliases.get(name, {}))

    def set_absent(self, name: str, version: str) -> None:
        """The version is not in memory, and is loaded when it is asked for."""
        self._absent.add((name, version))
        self.set_status(name, version, "UNAVAILABLE", ABSENT)
        self._update_routes(name)

    def forget_absent(self, name: str) -> None:
        """None of its versions is one that is loaded when it is asked for any more."""
        gone = {key for key in self._absent if key[0] == name}
        self._absent -= gone
        for key in gone:
            if self._statuses[key].reason == ABSENT:
                self.set_status(*key, "UNAVAILABLE", UNLOADED)
        self._update_routes(name)

    def absent(self) -> set[tuple[str, str]]:
        """Names and versions of those."""
        return set(self._absent)

    def withdraw(
        self, served: ServedModel, state: str = "UNAVAILABLE", reason: str = UNLOADED
    ) -> None:
        """No new request reaches ``served``. Nothing else where another has taken its place."""
        if self._routes.get((served.name, served.version)) is served:
            del self._routes[served.name, served.version]
            self.set_status(served.name, served.version, state, reason)
            self._update_routes(served.name)

    def is_routed(self, name: str, version: str) -> bool:
        """Whether this very version answers requests now."""
        return (name, version) in self._routes

    def forget_failures(self, name: str) -> None:
        """What could not be loaded before is no longer shown."""
        for key, status in tuple(self._statuses.items()):
            if key[0] == name and status.state == "UNAVAILABLE" and status.reason != UNLOADED:
                del self._statuses[key]
                self._gone.pop(key, None)

    def served(self) -> list[ServedModel]:
        """Every version that is ready, once each."""
        return [model for (_, version), model in self._routes.items() if version == model.version]

    def steps_below(self, name: str) -> set[str]:
        """The models that an ensemble is made of, and those that these are; none for others."""
        below: set[str] = set()
        left = [name]
        while left:
            steps = {s for served in self.served() if served.name in left for s in served.steps}
            left = list(steps - below)
            below |= steps
        return below

    def ensemble_depth(self, name: str, steps: Collection[str]) -> int:
        """Ensembles in the longest chain through ``name``, if that is made of ``steps``.

        What comes out above MAX_ENSEMBLE_DEPTH is more than that, and may be a cycle.
        """
        below: dict[str, set[str]] = {name: set(steps)}
        above: dict[str, set[str]] = {}
        for served in self.served():
            below.setdefault(served.name, set()).update(served.steps)
        for each, its_steps in below.items():
            for step in its_steps:
                above.setdefault(step, set()).add(each)
        return _levels(name, below) + _levels(name, above)

    def ensemble_steps(self, name: str, steps: Sequence[str]) -> int:
        """Steps that one request to the largest ensemble runs, if ``name`` is made of ``steps``.

        There must be no cycle: see :meth:`ensemble_depth`.
        """
        versions: dict[str, list[Sequence[str]]] = {name: [steps]}
        for served in self.served():
            versions.setdefault(served.name, []).append(served.steps)
        totals: dict[str, int] = {}

        def total(each: str) -> int:
            if each not in totals:
                made = versions.get(each, ())
                totals[each] = max((sum(1 + total(s) for s in of) for of in made), default=0)
            return totals[each]

        return max(map(total, versions))

    def _update_routes(self, name: str) -> None:
        for key in [(name, ""), *[key for key in self._routes if key[0] == name]]:
            if key in self._routes and self._routes[key].version != key[1]:
                del self._routes[key]
        target = self.default(name)
        for alias, version in (*self._aliases.get(name, {}).items(), ("", target)):
            served = self._routes.get((name, version)) if version else None
            if served is not None:
                self._routes[name, alias] = served

    def default(self, name: str) -> str:
        """The version that answers to the name alone; "": none. One that is absent counts, or a
        model would answer from an older version while the newest is out of memory."""
        aliases = self._aliases.get(name, {})
        if STABLE in aliases:
            return aliases[STABLE]
        versions = {v for n, v in (*self._routes, *self._absent) if n == name and v} - {*aliases}
        # What has a name of its own, such as a canary, is asked by that name alone.
        unnamed = versions - {*aliases.values()}
        return max(unnamed or versions, key=_number, default="")

    def _alias_text(self, name: str) -> str:
        aliases = self.aliases(name).items()
        told = ", ".join([f"{alias} = {version}" for alias, version in sorted(aliases)])
        return f", and the aliases {told}" if told else ""

    def _missing(self, name: str, version: str) -> ModelNotFound | ModelNotReady:
        target = self._aliases.get(name, {}).get(version, version) or self.default(name)
        if (name, target) in self._absent:
            return ModelAbsent(
                f"Request for unknown model: '{name}' version {target} is not ready: {ABSENT}",
                model=name,
                version=target,
            )
        known = {n: s for (n, _), s in self._statuses.items()}
        if name not in known:
            return ModelNotFound(
                f"Request for unknown model: '{name}' is not found",
                hint="POST /v2/repository/index lists the models"
                if known
                else "no model is loaded",
                model=name,
            )
        statuses = [s for s in self.statuses() if s.name == name]
        versions = [s.version for s in statuses]
        if target and target not in versions:
            return ModelNotFound(
                f"Request for unknown model: '{name}' version {version} is not found",
                hint=f"the versions here are {versions}{self._alias_text(name)}",
                model=name,
                version=version,
            )
        status = next((s for s in statuses if s.version == target), statuses[-1])
        number = f" version {status.version}" if status.version else ""
        return ModelNotReady(
            f"Request for unknown model: '{name}'{number} is not ready: "
            f"{status.state}{', ' + status.reason if status.reason else ''}",
            model=name,
            version=status.version,
            state=status.state,
        )


def _levels(name: str, edges: Mapping[str, set[str]]) -> int:
    """Edges in the longest way from ``name``; counted no further than the bound needs."""
    level, count = {name}, 0
    while count <= MAX_ENSEMBLE_DEPTH:
        level = {each for one in level for each in edges.get(one, ())}
        if not level:
            break
        count += 1
    return count


def _number(version: str) -> tuple[int, str]:
    return (int(version), "") if version.isascii() and version.isdigit() else (-1, version)


def _by_name_and_number(key: tuple[str, str]) -> tuple[str, tuple[int, str]]:
    return key[0], _number(key[1])
