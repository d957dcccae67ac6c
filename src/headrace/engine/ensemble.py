"""Runs ensembles: each step as soon as its inputs are there, tensors handed on as they are.

A step is an ordinary request to the engine: it is queued, batched with whatever else is asked
of its model, and answered like any other. So an ensemble needs no thread and no scheduler of
its own; what is here only remembers which tensors there are and what is still to come.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from headrace.config import ModelConfig
from headrace.engine import endings
from headrace.engine.ensemble_plan import ROOT, Course, Plan, Step
from headrace.engine.inflight import Reply, Ticket
from headrace.engine.outcomes import wanted_of
from headrace.engine.signature import specs_of
from headrace.errors import (
    CapacityError,
    DeadlineExceeded,
    HeadraceError,
    InferenceFailed,
    ModelLoadError,
)
from headrace.runtimes.base import ShapePolicy
from headrace.telemetry.instruments import BatchRecord, Instrument, RequestRecord
from headrace.types import InferenceRequest, InferenceResponse, Tensor, TensorSpec


class EnsembleModel:
    """Stands where a loaded model would: there is nothing to load, and nothing to execute."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        decoupled: bool = False,
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.decoupled = decoupled
        self.concurrency = 1
        self.shape_policy = ShapePolicy()
        self.may_run_inline = False

    def execute(self, _inputs: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        """Is never called: its steps are.

        Raises:
            InferenceFailed: always.
        """
        raise InferenceFailed("an ensemble is not executed, its steps are")

    def unload(self) -> None:
        """There is nothing to give back."""


class _Engine(Protocol):
    """What an ensemble needs of the engine."""

    def submit(self, request: InferenceRequest, reply: Reply) -> Ticket: ...

    def answer(self, ticket: Ticket, response: InferenceResponse) -> None: ...

    def fail(self, ticket: Ticket, outcome: str, error: HeadraceError) -> None: ...


def ensemble_model(name: str, config: ModelConfig) -> EnsembleModel:
    """Stands for the model of an ensemble.

    Raises:
        ModelLoadError: its signature is not declared.
    """
    if not (config.inputs and config.outputs and config.ensemble):
        raise ModelLoadError(
            f"ensemble '{name}' must declare its inputs, outputs and steps",
            code="wrong_ensemble",
            model=name,
        )
    return EnsembleModel(specs_of(config.inputs), specs_of(config.outputs))


class Ensembles:
    """The intakes of ensembles. On the event loop."""

    def __init__(self, engine: _Engine, now_ns: Callable[[], int], instrument: Instrument) -> None:
        self.engine = engine
        self.now_ns = now_ns
        self.instrument = instrument

    def intake(self, plan: Plan) -> Callable[[Ticket], None]:
        """Takes requests for one ensemble."""

        def take(ticket: Ticket) -> None:
            wanted = ticket.request.outputs
            names = () if wanted is None else tuple([output.name for output in wanted])
            _Run(self, ticket, plan.course(names)).start()

        return take


class _Branch:
    """What happens within one answer of a decoupled step, or, at the root, within a request."""

    __slots__ = ("answered", "children", "parent", "running", "scope", "started", "values")

    def __init__(self, parent: _Branch | None, scope: int, values: dict[str, Tensor]) -> None:
        self.parent = parent
        self.scope = scope
        self.values = values
        self.children: list[_Branch] = []
        self.started: set[int] = set()
        self.running = 0
        self.answered = False

    def value(self, name: str) -> Tensor | None:
        branch: _Branch | None = self
        while branch is not None:
            if (tensor := branch.values.get(name)) is not None:
                return tensor
            branch = branch.parent
        return None

    def below(self) -> Iterator[_Branch]:
        """Itself, and everything within it."""
        yield self
        for child in tuple(self.children):
            yield from child.below()


class _Run:
    """One request to an ensemble, from its intake to its end."""

    def __init__(self, ensembles: Ensembles, ticket: Ticket, course: Course) -> None:
        self._ensembles = ensembles
        self._ticket = ticket
        self._course = course
        self._root = _Branch(None, ROOT, {t.name: t for t in ticket.request.inputs})
        given = self._root.values
        # What the caller may leave out, and did, no step need wait for.
        self._absent = {s.name for s in ticket.served.metadata.inputs if s.name not in given}
        self._under_way: dict[int, Ticket] = {}
        self._next = 0
        self._deadline_ns = 0

    def start(self) -> None:
        """Submits the first steps.

        Raises:
            HeadraceError: one of them was refused.
        """
        ticket = self._ticket
        now_ns = self._ensembles.now_ns()
        ticket.admitted_ns = ticket.batched_ns = ticket.started_ns = now_ns
        if not ticket.arrived_ns:
            ticket.arrived_ns = ticket.decoded_ns = now_ns
        timeout_ns = ticket.request.timeout_ns or ticket.served.timeout_ns
        self._deadline_ns = ticket.arrived_ns + timeout_ns
        try:
            self._launch(self._root)
        except HeadraceError:
            self._stop()
            raise
        ticket.when_ended(self._on_end)

    # -- answers of steps ------------------------------------------------------------------

    def answered(
        self, number: int, step: Step, branch: _Branch, response: InferenceResponse, *, last: bool
    ) -> None:
        """A step gave an answer."""
        if last:
            del self._under_way[number]
            branch.running -= 1
        ticket = self._ticket
        if ticket.done:
            return
        there = {tensor.name: tensor for tensor in response.outputs}
        values = {
            name: Tensor(name, there[own].datatype, there[own].shape, there[own].data)
            for own, name in step.outputs
            if own in there
        }
        if step.decoupled:
            grown = _Branch(branch, step.index, values) if values else None
            if grown is not None:
                branch.children.append(grown)
        else:
            branch.values.update(values)
            grown = branch
        try:
            answers = [] if grown is None else self._advance(grown)
        except HeadraceError as error:
            self._fail(error)
            return
        self._prune(grown or branch)
        self._deliver(answers)

    def failed(self, number: int, step: Step, error: HeadraceError) -> None:
        """A step failed, and with it the ensemble."""
        del self._under_way[number]
        if not self._ticket.done:
            self._fail(self._of_step(step, error))

    def _advance(self, branch: _Branch) -> list[dict[str, Tensor]]:
        """Starts what can start, and collects the answers that are complete."""
        answers: list[dict[str, Tensor]] = []
        course = self._course
        for inner in branch.below():
            self._launch(inner)
            if inner.scope != course.scope or inner.answered:
                continue
            values = {name: inner.value(name) for name in course.wanted}
            outputs = {name: value for name, value in values.items() if value is not None}
            if len(outputs) == len(course.wanted):
                inner.answered = True
                answers.append(outputs)
        return answers

    def _deliver(self, answers: Sequence[dict[str, Tensor]]) -> None:
        ticket = self._ticket
        for number, outputs in enumerate(answers, 1):
            final = number == len(answers) and not self._under_way
            try:
                response = self._response(outputs)
            except HeadraceError as error:
                self._fail(error)
                return
            if final:
                self._finish(response)
                return
            if ticket.served.decoupled:
                ticket.reply.part(response)  # type: ignore[attr-defined]  # checked by submit
            else:
                self._finish(response)  # what still runs is wanted by nobody
                return
        if self._under_way:
            return
        if ticket.served.decoupled:
            self._finish(self._response({}))
            return
        name = ticket.served.name
        self._fail(
            InferenceFailed(
                f"in ensemble '{name}', unexpected deadlock, at least one output is not set "
                "while no more ensemble steps can be made",
                code="missing_output",
                model=name,
            )
        )

    def _response(self, values: dict[str, Tensor]) -> InferenceResponse:
        served, request = self._ticket.served, self._ticket.request
        outputs = [values[s.name] for s in served.metadata.outputs if s.name in values]
        outputs = wanted_of(outputs, request, served)
        return InferenceResponse(served.name, served.version, request.id, outputs)

    # -- steps -------------------------------------------------------------------------------

    def _launch(self, branch: _Branch) -> None:
        for step in self._course.steps.get(branch.scope, ()):
            if step.index in branch.started:
                continue
            inputs: list[Tensor] = []
            for own, name in step.inputs:
                tensor = branch.value(name)
                if tensor is not None:
                    inputs.append(Tensor(own, tensor.datatype, tensor.shape, tensor.data))
                elif name not in self._absent:
                    break
            else:
                branch.started.add(step.index)
                self._submit(step, branch, inputs)

    def _submit(self, step: Step, branch: _Branch, inputs: list[Tensor]) -> None:
        ticket, now_ns = self._ticket, self._ensembles.now_ns()
        request = ticket.request
        left_ns = self._deadline_ns - now_ns
        if left_ns <= 0:
            raise endings.expired(ticket, waited_ns=now_ns - ticket.arrived_ns, running=True)
        step_request = InferenceRequest(
            step.model,
            inputs,
            step.version,
            request.id,
            self._course.asked[step.index],
            request.parameters,
            left_ns,
            request.priority,
            request.tenant,
            now_ns,
            now_ns,
            request.sequence_id,
            request.sequence_start,
            request.sequence_end,
            caller=request.caller,
        )
        slo_ns = request.slo_ns or ticket.served.slo_ns
        if slo_ns:  # what is left of it is all that a step has
            step_request.slo_ns = max(1, ticket.arrived_ns + slo_ns - now_ns)
        number = self._next
        self._next += 1
        try:
            reply = _StepReply(self, number, step, branch)
            self._under_way[number] = self._ensembles.engine.submit(step_request, reply)
        except HeadraceError as error:
            raise self._of_step(step, error) from error
        branch.running += 1

    def _of_step(self, step: Step, error: HeadraceError) -> HeadraceError:
        """The same error, saying where."""
        ours = copy.copy(error)
        ours.message = (
            f"in ensemble '{self._ticket.served.name}', step {step.index} "
            f"('{step.model}'): {error.message}"
        )
        ours.args = (ours.message,)
        ours.details = {**error.details, "ensemble": self._ticket.served.name, "step": step.model}
        return ours

    def _prune(self, branch: _Branch) -> None:
        """Forgets an answer's branch once nothing more can come of it: a stream may be long."""
        steps, scope = self._course.steps, self._course.scope
        while branch.parent is not None:
            waits = len(branch.started) < len(steps.get(branch.scope, ()))
            if branch.running or branch.children or waits:
                return
            if branch.scope == scope and not branch.answered:
                return
            parent = branch.parent
            parent.children.remove(branch)
            branch = parent

    # -- ends --------------------------------------------------------------------------------

    def _finish(self, response: InferenceResponse) -> None:
        ticket = self._ticket
        now_ns = ticket.executed_ns = ticket.finished_ns = self._ensembles.now_ns()
        self._ensembles.instrument.batch_executed(
            BatchRecord(
                ticket.model, ticket.version, 1, ticket.rows, 0, now_ns - ticket.started_ns, 0
            )
        )
        self._ensembles.engine.answer(ticket, response)

    def _fail(self, error: HeadraceError) -> None:
        self._ensembles.engine.fail(self._ticket, _outcome(error), error)

    def _on_end(self, _ticket: Ticket) -> None:
        self._stop()

    def _stop(self) -> None:
        """Nothing more is wanted of any step; and nothing here may hold what holds it."""
        for ticket in tuple(self._under_way.values()):
            ticket.cancel()
        self._under_way.clear()
        for branch in tuple(self._root.below()):
            branch.children.clear()


class _StepReply:
    """Where the answers of one step go."""

    def __init__(self, run: _Run, number: int, step: Step, branch: _Branch) -> None:
        self._run = run
        self._number = number
        self._step = step
        self._branch = branch

    def part(self, response: InferenceResponse) -> None:
        """One of several answers."""
        self._run.answered(self._number, self._step, self._branch, response, last=False)

    def complete(self, response: InferenceResponse, _record: RequestRecord) -> None:
        """The last answer, or the only one."""
        self._run.answered(self._number, self._step, self._branch, response, last=True)

    def fail(self, error: HeadraceError) -> None:
        """There will be no answer."""
        self._run.failed(self._number, self._step, error)


def _outcome(error: HeadraceError) -> str:
    if isinstance(error, DeadlineExceeded):
        return "expire"
    return "reject" if isinstance(error, CapacityError) else "fail"
