"""Writes an ONNX graph whose weights stand in a file beside it.

Weights go to disk one at a time as they are added, so building a model takes the memory of
its largest tensor, no protobuf ever nears its limit of 2 GiB, and the runtime maps the file:
ONNX Runtime then loads all-MiniLM-L6-v2 in half the time and half the memory it takes with
the weights inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from headrace.errors import MissingExtra
from headrace.types import DTYPE_OF, DYNAMIC, TensorSpec

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
OPSET = 20
"""The first with Gelu (LayerNormalization: 17). ONNX Runtime 1.20 and OpenVINO 2025.0, the
lowest versions that headrace allows, run it."""

_IR_VERSION = 9  # what belongs to opset 20
_AXES = ("batch", "tokens")
_PAGE_BYTES = 4096
"""Weights begin on a page of their file, as mapping likes it. What is smaller than one stays
in the graph, where shape inference and constant folding see it."""


class GraphWriter:
    """Nodes, constants and weights of one graph; ``save`` makes it a model in ``folder``.

    Every method that adds a node returns the name of its output.
    """

    def __init__(self, folder: Path) -> None:
        """Raises MissingExtra without the onnx package, OSError where nothing can be written."""
        try:
            import onnx
        except ImportError:
            raise MissingExtra("building an ONNX graph", extra="text", package="onnx") from None
        self._onnx = onnx
        self._folder = folder
        self._data = (folder / DATA_FILE).open("wb")
        self._nodes: list[Any] = []
        self._initializers: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._data.close()

    def weight(self, name: str, array: np.ndarray) -> str:
        """Adds a tensor once, under its own name."""
        if name in self._initializers:
            return name
        if array.nbytes < _PAGE_BYTES:
            self._initializers[name] = self._onnx.numpy_helper.from_array(array, name)
            return name
        self._data.write(b"\0" * (-self._data.tell() % _PAGE_BYTES))
        tensor = self._onnx.TensorProto(
            name=name,
            dims=array.shape,
            data_type=self._element_type(array.dtype),
            data_location=self._onnx.TensorProto.EXTERNAL,
        )
        facts = {"location": DATA_FILE, "offset": self._data.tell(), "length": array.nbytes}
        for key, value in facts.items():
            tensor.external_data.add(key=key, value=str(value))
        self._data.write(np.ascontiguousarray(array).data)
        self._initializers[name] = tensor
        return name

    def integers(self, *values: int) -> str:
        """An int64 vector: axes and shapes; equal ones are the same constant."""
        return self.weight(f"int64:{','.join(map(str, values))}", np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A float32 scalar; equal ones are the same constant."""
        return self.weight(f"float:{value!r}", np.array(value, np.float32))

    def node(self, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Adds one operator with one output, named ``output`` or by itself."""
        output = output or f"{op_type}_{len(self._nodes)}"
        make = self._onnx.helper.make_node
        self._nodes.append(make(op_type, inputs, [output], output, **attributes))
        return output

    def cast(self, name: str, datatype: str) -> str:
        """Adds a conversion to a V2 datatype."""
        return self.node("Cast", name, to=self._element_type(DTYPE_OF[datatype]))

    def save(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        """Writes the model file; call once, last. Free dimensions: ``batch``, then ``tokens``."""
        helper = self._onnx.helper
        graph = helper.make_graph(
            self._nodes,
            "headrace",
            [self._value(spec) for spec in inputs],
            [self._value(spec) for spec in outputs],
            list(self._initializers.values()),
        )
        model = helper.make_model(
            graph,
            producer_name="headrace",
            ir_version=_IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        (self._folder / MODEL_FILE).write_bytes(model.SerializeToString())

    def _element_type(self, dtype: np.dtype[Any]) -> int:
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(dtype))

    def _value(self, spec: TensorSpec) -> Any:
        shape = [_AXES[axis] if size == DYNAMIC else size for axis, size in enumerate(spec.shape)]
        kind = self._element_type(DTYPE_OF[spec.datatype])
        return self._onnx.helper.make_tensor_value_info(spec.name, kind, shape)
