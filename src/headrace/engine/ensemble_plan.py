"""A model made of other models: is what its configuration says sound, and what depends on what.

Settled once, when it is loaded. The steps form a graph without cycles; a tensor has one
writer; names, datatypes and shapes agree with the models that are there. A step whose model
gives any number of answers (*decoupled*) begins a *scope*: what depends on it happens once for
each of its answers. Scopes lie within one another, never side by side: the answers of two such
models have nothing that says which belongs to which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn

import msgspec

from headrace.config import EnsembleStep
from headrace.errors import ModelLoadError
from headrace.types import DYNAMIC, ModelMetadata, RequestedOutput, TensorSpec

ROOT = -1
"""The scope of what happens once for a request."""


class StepModel(msgspec.Struct, frozen=True):
    """What must be known of a step's model."""

    metadata: ModelMetadata
    decoupled: bool


class Step(msgspec.Struct, frozen=True):
    """One step. ``inputs`` and ``outputs``: (the model's name, the ensemble's name)."""

    index: int
    model: str
    version: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    decoupled: bool = False
    scope: int = ROOT


class Course(msgspec.Struct, frozen=True):
    """What must happen for the outputs that a request asks for.

    ``wanted`` are these outputs. ``steps`` are by scope, in an order in which they could run one
    after another; ``asked`` are the outputs to ask of each step.
    """

    wanted: tuple[str, ...]
    scope: int
    steps: Mapping[int, tuple[Step, ...]]
    asked: Mapping[int, list[RequestedOutput]]


class Plan:
    """The whole graph of an ensemble."""

    def __init__(self, steps: Sequence[Step], outputs: Sequence[str]) -> None:
        self.steps = tuple(steps)
        self.outputs = tuple(outputs)
        self.decoupled = any(step.decoupled for step in steps)
        self._writer = {name: step for step in steps for _, name in step.outputs}
        self._courses: dict[tuple[str, ...], Course] = {}

    def course(self, wanted: tuple[str, ...] = ()) -> Course:
        """For these outputs of the ensemble; for all if there are none."""
        course = self._courses.get(wanted)
        if course is None:
            course = self._courses[wanted] = self._lay(wanted or self.outputs)
        return course

    def _lay(self, wanted: tuple[str, ...]) -> Course:
        needed: set[int] = set()
        tensors = set(wanted)
        for step in reversed(self.steps):  # they are sorted: who writes comes before who reads
            if tensors & {name for _, name in step.outputs}:
                needed.add(step.index)
                tensors |= {name for _, name in step.inputs}
        steps = [step for step in self.steps if step.index in needed]
        scopes = {step.scope for step in steps} | {ROOT}
        scopes |= {step.index for step in steps if step.decoupled}
        writers = [self._writer[name] for name in wanted if name in self._writer]
        return Course(
            wanted=wanted,
            scope=max([_inner(step) for step in writers], key=self._depth, default=ROOT),
            steps={scope: tuple(s for s in steps if s.scope == scope) for scope in scopes},
            asked={
                step.index: [RequestedOutput(own) for own, name in step.outputs if name in tensors]
                for step in steps
            },
        )

    def _depth(self, scope: int) -> int:
        return len(scopes_around(scope, {step.index: step for step in self.steps}))


def scopes_around(scope: int, steps: Mapping[int, Step]) -> list[int]:
    """A scope and all that it lies in, the innermost first."""
    chain = [scope]
    while chain[-1] != ROOT:
        chain.append(steps[chain[-1]].scope)
    return chain


def _inner(step: Step) -> int:
    """The scope of what the step writes."""
    return step.index if step.decoupled else step.scope


def plan_of(
    name: str,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    steps: Sequence[EnsembleStep],
    model_of: Callable[[str, str], StepModel],
) -> Plan:
    """Checks an ensemble and sorts its steps.

    Args:
        model_of: a step's model by name and version; raises what an ensemble that cannot be
            loaded without it should raise.

    Raises:
        ModelLoadError: what is wrong with it.
    """
    return _Planner(name, inputs, outputs).plan(steps, model_of)


class _Planner:
    def __init__(
        self, name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self._name = name
        self._inputs = [spec.name for spec in inputs]
        self._outputs = [spec.name for spec in outputs]
        # Every tensor with the first who named it: (datatype, shape, who).
        self._known = {s.name: (s.datatype, s.shape, f"ensemble {name}") for s in inputs}
        self._known |= {s.name: (s.datatype, s.shape, f"ensemble {name}") for s in outputs}

    def plan(
        self, steps: Sequence[EnsembleStep], model_of: Callable[[str, str], StepModel]
    ) -> Plan:
        if not steps:
            self._fail("has no steps")
        checked = [self._check(i, step, model_of) for i, step in enumerate(steps)]
        writers: dict[str, Step] = {}
        for step in checked:
            for _, tensor in step.outputs:
                if tensor in writers or tensor in self._inputs:
                    self._fail(f"tensor '{tensor}' is written more than once")
                writers[tensor] = step
        read = {tensor for step in checked for _, tensor in step.inputs}
        for tensor in (*sorted(read), *self._outputs):
            if tensor not in writers and (tensor not in self._inputs or tensor not in read):
                self._fail(f"tensor '{tensor}' is not written by any step")
        return Plan(self._scoped(self._sorted(checked, writers), writers), self._outputs)

    def _check(
        self, index: int, step: EnsembleStep, model_of: Callable[[str, str], StepModel]
    ) -> Step:
        model = model_of(step.model, step.version)
        specs = {spec.name: spec for spec in model.metadata.inputs}
        self._agree("input", step, step.input_map, specs)
        missing = [
            spec.name
            for spec in model.metadata.inputs
            if not spec.optional and spec.name not in step.input_map
        ]
        if missing:
            self._fail(f"step {index} feeds no input {missing} of model '{step.model}'")
        self._agree("output", step, step.output_map, {s.name: s for s in model.metadata.outputs})
        return Step(
            index,
            step.model,
            step.version,
            tuple(step.input_map.items()),
            tuple(step.output_map.items()),
            model.decoupled,
        )

    def _agree(
        self,
        kind: str,
        step: EnsembleStep,
        mapped: Mapping[str, str],
        specs: Mapping[str, TensorSpec],
    ) -> None:
        for own, tensor in mapped.items():
            spec = specs.get(own)
            if spec is None:
                self._fail(f"'{own}' is no {kind} of model '{step.model}', but {sorted(specs)} are")
            who = f"model {step.model}"
            datatype, shape, first = self._known.setdefault(
                tensor, (spec.datatype, spec.shape, who)
            )
            if datatype != spec.datatype:
                self._fail(
                    f"ensemble tensor {tensor}: inconsistent data type: {datatype} is inferred "
                    f"from {first} while {spec.datatype} is inferred from {who}"
                )
            if not _compatible(shape, spec.shape):
                self._fail(
                    f"ensemble tensor {tensor}: inconsistent shape: {list(shape)} is inferred "
                    f"from {first} while {list(spec.shape)} is inferred from {who}"
                )

    def _sorted(self, steps: Sequence[Step], writers: Mapping[str, Step]) -> list[Step]:
        """Who writes before who reads; otherwise as they stand in the configuration."""
        done: list[Step] = []
        left = list(steps)
        while left:
            ready = [
                step
                for step in left
                if all(writers[t] in done for _, t in step.inputs if t in writers)
            ]
            if not ready:
                names = ", ".join(f"'{step.model}'" for step in left)
                self._fail(f"circular dependency between the steps {names}")
            done += ready
            left = [step for step in left if step not in ready]
        return done

    def _scoped(self, steps: Sequence[Step], writers: Mapping[str, Step]) -> list[Step]:
        scoped: dict[int, Step] = {}
        for step in steps:
            before = [scoped[writers[t].index] for _, t in step.inputs if t in writers]
            scope = self._innermost(map(_inner, before), scoped, f"model '{step.model}'")
            scoped[step.index] = msgspec.structs.replace(step, scope=scope)
        ends = [scoped[writers[t].index] for t in self._outputs if t in writers]
        self._innermost(map(_inner, ends), scoped, "its outputs")
        return list(scoped.values())

    def _innermost(self, scopes: Iterable[int], steps: Mapping[int, Step], where: str) -> int:
        inner = ROOT
        for scope in scopes:
            if inner in scopes_around(scope, steps):
                inner = scope
            elif scope not in scopes_around(inner, steps):
                names = sorted({steps[inner].model, steps[scope].model})
                self._fail(f"the answers of decoupled models {names} meet in {where}")
        return inner

    def _fail(self, what: str) -> NoReturn:
        raise ModelLoadError(
            f"in ensemble {self._name}, {what}", code="wrong_ensemble", model=self._name
        )


def _compatible(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(
        a == b or DYNAMIC in (a, b) for a, b in zip(one, other, strict=True)
    )
