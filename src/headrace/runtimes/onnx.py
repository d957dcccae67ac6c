"""ONNX Runtime: one session, shared by as many threads as may run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import get_ident
from typing import Any, Literal

import msgspec
import numpy as np

from headrace.errors import HeadraceError, InferenceFailed, MissingExtra, ModelLoadError
from headrace.runtimes.base import Artifact, InstanceConfig, ShapePolicy
from headrace.runtimes.compiled import CompiledPlace, place_of
from headrace.runtimes.ending import on_end
from headrace.runtimes.loops import may_be_endless
from headrace.runtimes.onnx_errors import load_hint, useful
from headrace.runtimes.onnx_values import (
    CLASS_SCORES,
    axis_names,
    bfloat16_bits,
    class_scores,
    decode_texts,
    encode_texts,
    input_spec,
    output_spec,
)
from headrace.runtimes.options import read_options
from headrace.types import TensorSpec

_BFLOAT16_ELEMENT = 16  # onnx.TensorProto.BFLOAT16
_FATAL = 4  # ONNX Runtime's log severity; what it calls an error reaches us as an exception
_OPTIMIZATION = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}
_OPTIMIZED = "model.onnx"
_EXTERNAL = {
    # A file beside the graph is mapped, so that processes share its pages. Packed weights are
    # what loading takes longest to make; versions that do not know the last entry ignore it.
    "session.optimized_model_external_initializers_file_name": "model.onnx.data",
    "session.optimized_model_external_initializers_min_size_in_bytes": "4096",
    "session.save_external_prepacked_constant_initializers": "1",
}


class OnnxOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``runtime_options`` of a model that ONNX Runtime runs."""

    providers: tuple[str | tuple[str, dict[str, str | int | float | bool]], ...] = (
        "CPUExecutionProvider",
    )
    """Execution providers, best first, each a name or ``[name, {option: value}]``. One that
    is asked for and cannot start is an error, never a silent fall-back to the CPU."""

    optional_inputs: tuple[str, ...] = ()
    """Graph inputs with a default value (initializers that may be overridden) that a request
    may set. None by default: many exporters list every weight this way."""

    graph_optimization: Literal["all", "extended", "basic", "off"] = "all"
    session_config: dict[str, str] = {}
    """Any further entry of ONNX Runtime's session configuration, as key and text."""


class OnnxRuntime:
    """Runs ``.onnx`` files, with the weights inside or beside them. See :class:`OnnxOptions`.

    External weights must stay in the model's folder: ONNX Runtime refuses ``..``, absolute
    paths and symbolic links that leave it.
    """

    name = "onnxruntime"
    formats: tuple[str, ...] = ("onnx",)

    def load(self, artifact: Artifact, config: InstanceConfig) -> OnnxModel:
        """Makes the session; reads the file once. ``config.concurrency`` threads may share it.

        Raises:
            ModelLoadError: ONNX Runtime does not take the file, its inputs and outputs are
                not tensors, or an option is wrong.
            MissingExtra: onnxruntime is not installed.
        """
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise MissingExtra("ONNX Runtime", extra="all", package="onnxruntime") from error
        options = read_options(artifact, OnnxOptions, self.name)
        place = _place(ort, artifact, options)
        session = _session_from(place, ort, options, config)
        if session is None:
            session = _make_session(ort, artifact, options, config)
        try:
            model = OnnxModel(ort, session, artifact.name, config.concurrency, options)
        except ModelLoadError as error:
            error.details.setdefault("path", str(artifact.path))
            raise
        model.may_be_endless = partial(may_be_endless, artifact.path)
        if place is not None:
            model.compiled = _Compiled(place, ort, artifact, options)
        return model


class OnnxModel:
    """A session and its signature. A :class:`headrace.runtimes.base.LoadedModel`.

    Attributes:
        axis_names: for every input and output, the exporter's name of each axis ("batch",
            "sequence"), "" where it is fixed or has none. Axes of one name have one size.
    """

    def __init__(
        self, ort: Any, session: Any, name: str, concurrency: int, options: OnnxOptions
    ) -> None:
        nodes = list(session.get_inputs())
        defaults = _chosen_defaults(session, options.optional_inputs, name)
        outputs = session.get_outputs()
        self.inputs = (
            *(input_spec(node, name) for node in nodes),
            *(_as_optional(input_spec(node, name)) for node in defaults),
        )
        self.outputs = tuple(output_spec(node, name) for node in outputs)
        self.axis_names = {node.name: axis_names(node) for node in (*nodes, *defaults, *outputs)}
        self.concurrency = concurrency
        self.shape_policy = ShapePolicy()
        self.compiled: _Compiled | None = None
        self.may_be_endless: Callable[[], bool] = lambda: False
        self._name = name
        self._ort = ort
        self._session = session
        self._input_names = [spec.name for spec in self.inputs]
        self._output_names = [spec.name for spec in self.outputs]
        self._only_input = self._input_names[0] if len(self._input_names) == 1 else ""
        self._scores = {node.name for node in outputs if node.type in CLASS_SCORES}
        self._run: Callable[..., list[Any]] = session.run
        if self._needs_conversion():
            self._run = self._run_converted
        # By thread. Made anew by each call that is given none, a tenth of the time of a tiny
        # model; and one for all would end the runs of all when one is interrupted.
        self._run_options: dict[int, Any] = {}

    def execute(self, inputs: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        """One ``session.run``. See :class:`headrace.runtimes.base.LoadedModel`."""
        try:
            if self._only_input:
                feeds = {self._only_input: inputs[0]}
            else:
                feeds = dict(zip(self._input_names, inputs, strict=True))
            run_options = self._run_options.get(get_ident()) or self._new_run_options()
            return self._run(self._output_names, feeds, run_options)
        except HeadraceError:
            raise
        except Exception as error:
            raise InferenceFailed(
                f"model '{self._name}' failed: {useful(error)}", model=self._name
            ) from error

    def interrupt(self, thread: int, _reason: str) -> None:
        """See :class:`headrace.runtimes.base.LoadedModel`. Ends it between two operators."""
        run_options = self._run_options.pop(thread, None)  # ended for ever: the next has its own
        if run_options is not None:
            run_options.terminate = True

    def _new_run_options(self) -> Any:
        made = self._run_options[get_ident()] = self._ort.RunOptions()
        return made

    def unload(self) -> None:
        """Lets go of the session, which frees its memory. ``execute`` fails from now on."""
        self._run = self._run_unloaded
        self._session = None
        self._run_options = {}
        if self.compiled is not None:
            self.compiled.place.release()

    def keep_compiled(self) -> None:
        """See :class:`headrace.runtimes.base.LoadedModel`."""
        if self.compiled is not None:
            self.compiled.keep()

    def _needs_conversion(self) -> bool:
        specs = (*self.inputs, *self.outputs)
        kinds = {spec.datatype for spec in specs}
        optional = any(spec.optional for spec in specs)
        return bool(optional or self._scores or kinds & {"BYTES", "BF16"})

    def _run_converted(
        self, names: list[str], feeds: dict[str, np.ndarray | None], run_options: Any
    ) -> list[np.ndarray]:
        given = {
            spec.name: decode_texts(array, spec.name) if spec.datatype == "BYTES" else array
            for spec, array in zip(self.inputs, feeds.values(), strict=True)
            if array is not None
        }
        if any(spec.datatype == "BF16" for spec in (*self.inputs, *self.outputs)):
            values = self._run_bfloat16(names, given, run_options)
        else:
            values = self._session.run(names, given, run_options)
        return [
            encode_texts(value)
            if spec.datatype == "BYTES"
            else class_scores(value)
            if spec.name in self._scores
            else value
            for spec, value in zip(self.outputs, values, strict=True)
        ]

    def _run_bfloat16(
        self, names: list[str], given: dict[str, np.ndarray], run_options: Any
    ) -> list[Any]:
        """Through OrtValues, which can say "these 16 bits are a bfloat16"; numpy cannot."""
        wrap = self._ort.OrtValue
        datatypes = {spec.name: spec.datatype for spec in self.inputs}
        feeds = {
            name: wrap.ortvalue_from_numpy_with_onnx_type(
                np.ascontiguousarray(array), _BFLOAT16_ELEMENT
            )
            if datatypes[name] == "BF16"
            else wrap.ortvalue_from_numpy(array)
            for name, array in given.items()
        }
        values = self._session.run_with_ort_values(names, feeds, run_options)
        return [
            bfloat16_bits(value)
            if spec.datatype == "BF16"
            # A copy, because numpy() may show memory that belongs to the session.
            else value.numpy().copy()
            for spec, value in zip(self.outputs, values, strict=True)
        ]

    def _run_unloaded(self, *_: Any) -> list[np.ndarray]:
        raise InferenceFailed(f"model '{self._name}' was unloaded", model=self._name)


class _Compiled:
    """How the optimised model gets to its place: a session of its own writes it.

    Not the session that serves, because several are made until one is chosen, and each would
    write. all-MiniLM-L6-v2 (ms to load, MB that two processes have together; medians of 3,
    two cores, ONNX Runtime 1.32): weights inside the file 290 and 340, in a file beside it
    82 and 250, optimised 60 and 246, optimised with its packed weights 55 and 211.
    Writing takes 350 to 600 ms. Answers are equal bit by bit, and so is their time.
    """

    def __init__(
        self, place: CompiledPlace, ort: Any, artifact: Artifact, options: OnnxOptions
    ) -> None:
        self.place = place
        self._ort = ort
        self._artifact = artifact
        self._options = options

    def keep(self) -> None:
        self.place.keep(self._build)

    def _build(self, folder: Path) -> None:
        made = _session_options(self._ort, self._options, InstanceConfig())
        made.optimized_model_filepath = str(folder / _OPTIMIZED)
        for key, value in _EXTERNAL.items():
            made.add_session_config_entry(key, value)
        self._ort.InferenceSession(
            str(self._artifact.path), made, providers=list(self._options.providers)
        )


def _place(ort: Any, artifact: Artifact, options: OnnxOptions) -> CompiledPlace | None:
    """Only where it is known to be the same model: optimised, and for the plain processor."""
    if options.providers != ("CPUExecutionProvider",) or options.graph_optimization == "off":
        return None
    facts = msgspec.json.encode(options, order="deterministic").decode()
    return place_of(artifact, OnnxRuntime.name, ort.__version__, facts)


def _session_from(
    place: CompiledPlace | None,
    ort: Any,
    options: OnnxOptions,
    config: InstanceConfig,
) -> Any:
    """A session of what was kept; None where nothing was, or it is no good."""
    entry = place.find() if place is not None else None
    if place is None or entry is None:
        return None
    made = _session_options(ort, options, config)
    made.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it has been done
    path = str(entry / _OPTIMIZED)
    try:
        return ort.InferenceSession(path, made, providers=list(options.providers))
    except Exception as error:  # noqa: BLE001 # whatever it is, the original tells it better
        place.refuse(useful(error))
        return None


def _make_session(
    ort: Any, artifact: Artifact, options: OnnxOptions, config: InstanceConfig
) -> Any:
    providers = [p if isinstance(p, str) else p[0] for p in options.providers]
    available = ort.get_available_providers()
    for provider in providers:
        if provider not in available:
            raise ModelLoadError(
                f"model '{artifact.name}' asks for the execution provider {provider!r}, which "
                "this ONNX Runtime was built without",
                hint=f"it has {', '.join(available)}; install the build of onnxruntime that "
                "brings yours",
                model=artifact.name,
            )
    try:
        session = ort.InferenceSession(
            str(artifact.path),
            _session_options(ort, options, config),
            providers=list(options.providers),
            enable_fallback=False,  # which would print to stdout and hide what went wrong
        )
    except Exception as error:
        raise _load_error(artifact.name, artifact.path, error) from error
    for provider in providers:
        if provider not in session.get_providers():
            raise ModelLoadError(
                f"the execution provider {provider!r} that model '{artifact.name}' asks for did "
                "not start: its driver or libraries are missing",
                hint="check the driver, or take it out of runtime_options.providers",
                model=artifact.name,
            )
    return session


def _session_options(ort: Any, options: OnnxOptions, config: InstanceConfig) -> Any:
    made = ort.SessionOptions()
    made.intra_op_num_threads = config.threads
    made.inter_op_num_threads = 1
    made.log_severity_level = _FATAL
    made.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, _OPTIMIZATION[options.graph_optimization]
    )
    # Idle threads that spin eat the core that the event loop needs.
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Both keep what the largest shapes needed. A 6-layer encoder (168 MB once loaded) after
    # 60 batches of up to 16 x 256 tokens from two threads: 541 MB with both, 398 MB without
    # the arena, 500 MB without the patterns, 311 MB without either; after 600 of up to
    # 8 x 128: 243 and 210 MB. CPU time of the encoder, of a convolutional network and of a
    # tiny MLP is the same within 3 % (ONNX Runtime 1.31, glibc 2.36).
    made.enable_cpu_mem_arena = False
    made.enable_mem_pattern = False
    for key, value in options.session_config.items():
        made.add_session_config_entry(key, value)
    if hasattr(made, "set_load_cancellation_flag"):
        on_end(partial(made.set_load_cancellation_flag, True))
    return made


def _load_error(name: str, path: Path, error: Exception) -> ModelLoadError:
    text = useful(error)
    return ModelLoadError(
        f"ONNX Runtime cannot load {path.name} of model '{name}': {text}",
        hint=load_hint(text, path),
        model=name,
        path=str(path),
    )


def _chosen_defaults(session: Any, wanted: Sequence[str], model: str) -> list[Any]:
    if not wanted:
        return []
    existing = {node.name: node for node in session.get_overridable_initializers()}
    for name in wanted:
        if name not in existing:
            raise ModelLoadError(
                f"runtime_options.optional_inputs names {name!r}, which is not an input with a "
                f"default value of model '{model}'",
                hint=f"it has {', '.join(sorted(existing)) or 'none'}",
                model=model,
            )
    return [existing[name] for name in wanted]


def _as_optional(spec: TensorSpec) -> TensorSpec:
    return msgspec.structs.replace(spec, optional=True)
