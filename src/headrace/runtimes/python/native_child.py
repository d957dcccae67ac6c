"""A model of another runtime, in the child that holds it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.errors import HeadraceError, InferenceFailed, ModelLoadError, detached
from headrace.runtimes import registry
from headrace.runtimes.base import InstanceConfig
from headrace.runtimes.python.messages import Started
from headrace.runtimes.python.native_start import NativeStart


class NativeModel:
    """What its runtime made of it, with errors as the server expects them.

    Raises:
        ModelLoadError: why the runtime could not load it.
    """

    def __init__(self, name: str, path: str, told: NativeStart) -> None:
        self._name = name
        try:
            self._model = registry.load(
                told.runtime, told.artifact(name, path), InstanceConfig(told.threads, 1)
            )
        except HeadraceError as error:
            # On purpose, so its message is for the reader; no traceback helps beside it.
            raise ModelLoadError(
                error.message, hint=error.hint, code=error.code, **error.details
            ) from None
        except Exception as error:
            raise ModelLoadError(
                f"the runtime {told.runtime} failed to load model '{name}': {error!r}",
                hint="the traceback is in the log; the runtime should raise ModelLoadError",
                model=name,
            ) from error

    def started(self, next_segment: int) -> Started:
        """All that the engine asks of a model that is loaded."""
        model = self._model
        return Started(
            model.inputs,
            model.outputs,
            next_segment,
            axis_names=getattr(model, "axis_names", {}),
            shape_policy=model.shape_policy,
        )

    def __call__(self, inputs: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        """One batch.

        Raises:
            HeadraceError: what the runtime raised on purpose.
            InferenceFailed: whatever else it raised.
        """
        try:
            return self._model.execute(inputs)
        except HeadraceError as error:
            # Without its cause: a library's traceback helps nobody.
            raise detached(error) from None
        except Exception as error:
            raise InferenceFailed(
                f"model '{self._name}' failed: {error!r}", model=self._name
            ) from error

    def close(self) -> None:
        """Gives everything back, in case the library has something to say at its end."""
        self._model.unload()
