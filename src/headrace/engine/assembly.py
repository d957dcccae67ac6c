"""From an opened model to one that can be served: its task, its signature, its batches.

Everything here happens in a loading thread, before anybody can ask for the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from headrace.engine import signature
from headrace.engine.catalog import MAX_ENSEMBLE_DEPTH, MAX_ENSEMBLE_STEPS, Catalog
from headrace.engine.declared import apply
from headrace.engine.ensemble import Ensembles
from headrace.engine.ensemble_plan import StepModel, plan_of
from headrace.engine.opening import Opened
from headrace.engine.ragged import ragged_collate
from headrace.engine.sequence_inputs import SequenceInputs
from headrace.engine.served import Profile, ServedModel
from headrace.engine.side_files import read_labels, read_side_file
from headrace.engine.warmup import warm_up
from headrace.errors import ConfigError, HeadraceError, ModelLoadError
from headrace.repository.base import ModelSource
from headrace.tasks import registry as tasks
from headrace.tasks.base import Task
from headrace.types import DYNAMIC, ModelMetadata

_PLATFORMS = {"onnxruntime": "onnxruntime_onnx"}
"""What V2 metadata calls a runtime, where it is not its own name."""


def served_of(opened: Opened) -> ServedModel:
    """The model with its public signature, checked against its own.

    Raises:
        ModelLoadError: what is declared is not what the model has, or a file is missing.
        ConfigError: the task cannot be made.
    """
    source, model, runtime = opened.source, opened.model, opened.runtime
    config = source.config
    task = _task_of(opened)
    declared: signature.Signature | None = None
    if task is None and (signature.is_declared(config) or getattr(model, "takes_requests", False)):
        declared = signature.signature_of(source.name, config, model)
    # The first of these that there is: who sees the model sees this.
    shown = task or declared or model
    served = ServedModel(
        metadata=ModelMetadata(
            name=source.name,
            versions=(source.version,),
            platform=_PLATFORMS.get(runtime, runtime),
            inputs=shown.inputs,
            outputs=shown.outputs,
        ),
        version=source.version,
        loaded=model,
        task=task,
        runtime=runtime,
        config=config,
    )
    if declared is not None:
        apply(declared, served)
        if declared.ragged or config.batch_inputs:
            served.collate = ragged_collate(served)
        if config.sequence is not None:
            read = partial(read_side_file, source)
            served.sequence_inputs = SequenceInputs(
                served.name, model, served.metadata.inputs, config.sequence, read
            )
    served.labels = _labels(source, served)
    return served


def fingerprint_of(source: ModelSource) -> str:
    """Names a model by its content: the bytes of its files, its name and how it is configured.

    Hashes everything; about a second for each gigabyte.
    """
    digest = hashlib.sha256(repr((source.name, source.version, source.config)).encode())
    within = source.folder if source.path.is_dir() or source.format == "python" else None
    files = sorted(within.rglob("*")) if within is not None else [source.path]
    for path in files:
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.name.encode() + b"\0")
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def check_workers(source: ModelSource, workers: int) -> None:
    """Whether every request of a sequence can meet the instance that knows it.

    Raises:
        ModelLoadError: it could reach another process, which does not.
    """
    if source.config.sequence is not None and workers > 1:
        raise ModelLoadError(
            f"unable to load model '{source.name}', its sequences cannot be told apart by "
            f"{workers} worker processes that share a port",
            code="sequences_need_one_worker",
            hint="serve it with server.workers = 1, where it may have many instances",
            model=source.name,
        )


def _task_of(opened: Opened) -> Task | None:
    """The task that was said or detected; none where the tensors themselves are declared.

    Raises:
        ConfigError: it cannot be made, or a stateful model has one.
    """
    source, config = opened.source, opened.source.config
    if config.task == "auto" and (config.inputs or config.outputs or config.sequence):
        return None
    options = {**source.task_options, **config.task_options}
    task = tasks.create(source.task, opened.model.inputs, opened.model.outputs, options)
    if task is not None and config.sequence is not None:
        raise ConfigError(
            f"model '{source.name}' has the task {task.kind!r} and sequences, and only tensors "
            "come in sequences",
            hint='set task = "tensor", or leave out sequence',
        )
    return task


def _labels(source: ModelSource, served: ServedModel) -> dict[str, tuple[str, ...]]:
    """The names of classes: of the files that are declared, or those that the task knows."""
    options = {**source.task_options, **source.config.task_options}
    known = options.get("labels")
    labels: dict[str, tuple[str, ...]] = {}
    if isinstance(known, list | tuple):
        names = tuple(map(str, known))
        labels = {spec.name: names for spec in served.metadata.outputs}
    for tensor in source.config.outputs:
        if tensor.labels:
            labels[tensor.name] = read_labels(source, tensor.labels)
    return labels


def trusted_profile(served: ServedModel) -> Profile | None:
    """How large batches may be where only the configuration can know; None: measure it.

    Models that are given requests put rows together themselves, or do not; rows of different
    size, one after another, prove nothing with made-up inputs; an ensemble has no batches; and
    what keeps a state must not be told anything that is not true.
    """
    batch_inputs = served.collate is not None
    keeps_state = served.sequence_inputs is not None and hasattr(served.loaded, "instance")
    if not (served.takes_requests or batch_inputs or served.steps or keeps_state):
        return None
    declared = served.signature
    rows = bool(declared and declared.rows)
    if keeps_state and declared is not None and declared.rows is None:
        rows = all(spec.shape[:1] == (DYNAMIC,) for spec in served.loaded.inputs)
    limit = served.config.batching.max_batch_size or (declared.rows_max if declared else 0) or 1
    return Profile(max_rows=limit if rows else 1, batchable=rows)


def as_declared(served: ServedModel, measured: Profile) -> Profile:
    """What was measured, unless the configuration says that no axis counts rows."""
    declared = served.signature
    if declared is None or declared.rows is not False:
        return measured
    return msgspec.structs.replace(
        measured,
        batchable=False,
        max_rows=1,
        inline_rows=min(1, measured.inline_rows),
        reason="its declared shapes do not begin with rows",
    )


def warm(served: ServedModel, source: ModelSource, profile: Profile) -> None:
    """Runs the made-up requests of its configuration.

    Raises:
        ModelLoadError: one of them failed.
    """
    if served.config.warmup and not served.steps:
        served.profile, served.batchable = profile, profile.batchable
        served.rows_sent = profile.batchable and served.task is None
        warm_up(served, lambda name: read_side_file(source, f"warmup/{name}"))


# -- ensembles ---------------------------------------------------------------------------------


def attach_ensemble(served: ServedModel, catalog: Catalog, ensembles: Ensembles) -> None:
    """Checks an ensemble against the models that are ready, and routes requests to its steps.

    Raises:
        ModelLoadError: what is wrong with it; or a step's model is not there, and why.
    """

    def model_of(name: str, version: str) -> StepModel:
        below = catalog.steps_below(name) | {name}
        if served.name in below:  # an earlier version of it may be there
            raise _circular(served.name, {served.name, name})
        try:
            step = catalog.resolve(name, version)
        except HeadraceError as error:
            raise ModelLoadError(
                f"ensemble '{served.name}' depends on '{name}' which has no loaded version. "
                f"Model '{name}' loading failed with error: {error.message}",
                code="missing_step",
                model=served.name,
                step=name,
            ) from error
        return StepModel(step.metadata, step.decoupled)

    plan = plan_of(
        served.name,
        inputs=served.metadata.inputs,
        outputs=served.metadata.outputs,
        steps=served.config.ensemble,
        model_of=model_of,
    )
    _check_depth(served, catalog)
    _check_steps(served, catalog)
    served.decoupled = plan.decoupled
    served.intake = ensembles.intake(plan)


def _check_depth(served: ServedModel, catalog: Catalog) -> None:
    depth = catalog.ensemble_depth(served.name, served.steps)
    if depth > MAX_ENSEMBLE_DEPTH:
        raise ModelLoadError(
            f"ensemble '{served.name}' would be in a chain of {depth} or more ensembles, "
            f"at most {MAX_ENSEMBLE_DEPTH} are allowed",
            code="wrong_ensemble",
            hint="name the steps of the inner ensembles instead of these",
            model=served.name,
        )


def _check_steps(served: ServedModel, catalog: Catalog) -> None:
    count = catalog.ensemble_steps(served.name, served.steps)
    if count > MAX_ENSEMBLE_STEPS:
        raise ModelLoadError(
            f"with ensemble '{served.name}' one request would run {count:,} steps, at most "
            f"{MAX_ENSEMBLE_STEPS:,} are allowed",
            code="wrong_ensemble",
            hint="let ensembles share steps instead of repeating them",
            model=served.name,
        )


def in_waves(
    sources: Sequence[ModelSource], problem: Callable[[ModelSource, ModelLoadError], None]
) -> list[list[ModelSource]]:
    """Who must be loaded before whom: an ensemble after its steps, all others first.

    Ensembles that need one another are in none; ``problem`` is told of each.
    """
    left = [source for source in sources if source.config.ensemble]
    waves = [[source for source in sources if not source.config.ensemble]]
    while left:
        names = {source.name for source in left}
        wave = [s for s in left if not names & {step.model for step in s.config.ensemble}]
        if not wave:
            for source in left:
                problem(source, _circular(source.name, names))
            break
        waves.append(wave)
        left = [source for source in left if source not in wave]
    return [wave for wave in waves if wave]


def _circular(name: str, names: set[str]) -> ModelLoadError:
    return ModelLoadError(
        f"ensemble '{name}' has a circular dependency: {sorted(names)} need one another",
        code="wrong_ensemble",
        model=name,
    )
