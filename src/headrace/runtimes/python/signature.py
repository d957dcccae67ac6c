"""From the type hints of ``predict`` to the signature of the model.

The vocabulary is described where users look for it, in :mod:`headrace.runtimes.python`.
This module reads functions; :mod:`.hints` reads one hint. Neither knows of files or batches.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from headrace.errors import ModelLoadError
from headrace.runtimes.python.hints import Container, HintError, check_spec, read_hint, show_hint
from headrace.runtimes.python.options import TensorOption
from headrace.types import TensorSpec

_EXAMPLE = 'Annotated[np.ndarray, "FP32[N,16]"]'


class Argument(msgspec.Struct, frozen=True):
    """One parameter of ``predict``."""

    spec: TensorSpec
    container: Container


class Signature(msgspec.Struct, frozen=True):
    """What goes in, what comes out. ``single``: predict returns its one output bare."""

    arguments: tuple[Argument, ...]
    outputs: tuple[TensorSpec, ...]
    single: bool

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The specs of the arguments, in the order of the parameters."""
        return tuple(argument.spec for argument in self.arguments)


def read_signature(
    function: Callable[..., Any],
    *,
    inputs: Sequence[TensorOption] | None = None,
    outputs: Sequence[TensorOption] | None = None,
) -> Signature:
    """The signature of ``function``, a plain function or a bound ``predict`` method.

    Args:
        function: what will be called with one keyword argument for each input.
        inputs: said in the configuration: overrides the hints of the parameters.
        outputs: said in the configuration: overrides the hint of the return value.

    Raises:
        ModelLoadError: a hint is missing or unclear; the hint of the error is the line to
            write instead.
    """
    parameters = _parameters(function)
    hints = _hints(function)
    try:
        if inputs is None:
            arguments = _arguments(parameters, hints)
        else:
            arguments = _declared_arguments(inputs, parameters, hints)
        if outputs is None:
            specs, single = _read_returned(hints.get("return", inspect.Signature.empty))
        else:
            specs = tuple(_declared(option) for option in outputs)
            single = len(specs) == 1
    except HintError as error:
        raise ModelLoadError(
            f"{_name(function)}: {error}",
            hint=f"write {_line_to_write(function, parameters, hints)}",
        ) from error
    _check_names("inputs", (argument.spec.name for argument in arguments))
    _check_names("outputs", (spec.name for spec in specs))
    return Signature(arguments, specs, single)


# Parameters


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise ModelLoadError(
                f"{_name(function)}: the parameter {parameter} cannot be given by name",
                hint="every input is a parameter that can be given by name, as in predict(self, x)",
            )
    return parameters


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # evaluating a hint runs the author's code
        raise ModelLoadError(
            f"{_name(function)}: its type hints cannot be read: {type(error).__name__}: {error}",
            hint="names used in hints must exist when the module has been imported",
        ) from error


def _arguments(
    parameters: Sequence[inspect.Parameter], hints: dict[str, Any]
) -> tuple[Argument, ...]:
    if not parameters:
        raise HintError("it has no inputs")
    arguments = []
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            raise HintError(f"**{parameter.name} does not say which inputs there are")
        if parameter.name not in hints:
            raise HintError(f"the input {parameter.name!r} has no type hint")
        try:
            reading = read_hint(hints[parameter.name])
        except HintError as error:
            raise HintError(f"the input {parameter.name!r}: {error}") from error
        optional = parameter.default is not parameter.empty
        spec = TensorSpec(parameter.name, reading.datatype, reading.shape, optional)
        arguments.append(Argument(spec, reading.container))
    return tuple(arguments)


def _declared_arguments(
    options: Sequence[TensorOption],
    parameters: Sequence[inspect.Parameter],
    hints: dict[str, Any],
) -> tuple[Argument, ...]:
    by_name = {parameter.name: parameter for parameter in parameters}
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    declared = {option.name for option in options}
    for parameter in parameters:
        needed = parameter.default is parameter.empty and parameter.kind != parameter.VAR_KEYWORD
        if needed and parameter.name not in declared:
            raise HintError(f"runtime_options.inputs does not name its input {parameter.name!r}")
    arguments = []
    for option in options:
        own = by_name.get(option.name)
        if own is None and not open_ended:
            raise HintError(f"runtime_options.inputs names {option.name!r}, which it does not take")
        has_default = own is not None and own.default is not own.empty
        if option.optional and not (has_default or own is None):
            raise HintError(f"the input {option.name!r} is optional and has no default")
        spec = _declared(option)
        if has_default:
            spec = msgspec.structs.replace(spec, optional=True)
        arguments.append(Argument(spec, _container_of(hints.get(option.name))))
    if not arguments:
        raise HintError("runtime_options.inputs is empty")
    return tuple(arguments)


def _declared(option: TensorOption) -> TensorSpec:
    try:
        datatype, shape = check_spec(option.datatype, option.shape)
    except HintError as error:
        raise HintError(f"runtime_options, {option.name!r}: {error}") from error
    return TensorSpec(option.name, datatype, shape, option.optional)


def _container_of(hint: Any) -> Container:
    try:
        return read_hint(hint).container
    except HintError:
        return "array"  # the configuration says which tensor; an array holds any


# Return values


def _read_returned(hint: Any) -> tuple[tuple[TensorSpec, ...], bool]:
    if hint is inspect.Signature.empty or hint in (None, type(None), Any):
        raise HintError("the return value has no type hint")
    if _is_typed_dict(hint) or _is_named_tuple(hint):
        fields = typing.get_type_hints(hint, include_extras=True)
        named = [(name, _required(field)) for name, field in fields.items()]
        if not named:
            raise HintError(f"{hint.__name__} has no fields, so there are no outputs")
        return _read_outputs(named), False
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        if not parts or Ellipsis in parts:
            raise HintError(f"{hint} does not say how many outputs there are")
        named = [(f"output_{index}", part) for index, part in enumerate(parts)]
        return _read_outputs(named), False
    if hint is dict or typing.get_origin(hint) is dict:
        raise HintError("a dict does not say which outputs there are: use a TypedDict")
    return _read_outputs([("output", hint)]), True


def _read_outputs(named: Iterable[tuple[str, Any]]) -> tuple[TensorSpec, ...]:
    specs = []
    for name, hint in named:
        try:
            reading = read_hint(hint, any_type=True)
        except HintError as error:
            raise HintError(f"the {name!r} it returns: {error}") from error
        specs.append(TensorSpec(name, reading.datatype, reading.shape))
    return tuple(specs)


def _is_typed_dict(hint: Any) -> bool:
    # By its marks, because typing_extensions has a TypedDict of its own.
    return isinstance(hint, type) and issubclass(hint, dict) and hasattr(hint, "__required_keys__")


def _is_named_tuple(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields")


def _required(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Required, typing.NotRequired):
        return typing.get_args(hint)[0]
    return hint


# What the author reads


def _line_to_write(
    function: Callable[..., Any],
    parameters: Sequence[inspect.Parameter],
    hints: dict[str, Any],
) -> str:
    parts = ["self"] if inspect.ismethod(function) else []
    for parameter in parameters or [inspect.Parameter("x", inspect.Parameter.KEYWORD_ONLY)]:
        name = "x" if parameter.kind is parameter.VAR_KEYWORD else parameter.name
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        parts.append(f"{name}: {_good_hint(hints.get(parameter.name))}{default}")
    returned = hints.get("return", inspect.Signature.empty)
    try:
        _read_returned(returned)
        result = show_hint(returned)
    except HintError:
        result = _EXAMPLE
    name = getattr(function, "__name__", "predict")
    return f"def {name}({', '.join(parts)}) -> {result}, with your own datatypes and dimensions"


def _good_hint(hint: Any) -> str:
    try:
        read_hint(hint)
    except HintError:
        return _EXAMPLE
    return show_hint(hint)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _check_names(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen or not name:
            raise ModelLoadError(f"the {what} have the name {name!r} more than once or empty")
        seen.add(name)
