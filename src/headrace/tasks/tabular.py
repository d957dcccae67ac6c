"""Rows with column names -> a label and its probabilities, or a number.

The public signature has one input for each column, so a table is sent as columns (as V2
clients send a data frame), or as records through :meth:`Tabular.from_records`. One request
is one item: its rows stay together, and nothing is padded.

================  ===============================  =====================================
the model gives   public outputs                   record
================  ===============================  =====================================
label, floats     ``label`` INT64 or BYTES [-1],   ``{"label": "no", "probabilities":
                  ``probabilities`` FP32 [-1, n]   {"no": 0.9, "yes": 0.1}}``
label alone       ``label``                        ``{"label": "no"}``
floats + labels   as the first; argmax is taken    as the first
floats alone      ``prediction`` FP64 [-1(, k)]    ``{"prediction": 3.5}``
================  ===============================  =====================================
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from headrace.errors import ConfigError, InferenceFailed, InvalidRequest
from headrace.tasks.base import Item, Padding, Prepared
from headrace.tasks.columns import Column, Datatype, array_from_values, check_columns
from headrace.tasks.tabular_layout import Layout
from headrace.tasks.tabular_outputs import TabularOutputs
from headrace.types import InferenceRequest, Tensor, TensorSpec


class TabularOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``task_options`` of a tabular model; ``headrace convert`` writes them."""

    columns: tuple[str | Column, ...]
    """``{name, datatype, nullable}`` in the order of training. datatype: FP64, INT64,
    BYTES or BOOL. A bare name is BYTES or INT64 where the model has an input of this name
    that is, else FP64."""

    labels: tuple[str | int, ...] = ()
    """The classes, in the order of the probabilities; all names or all numbers. Empty for a
    regression."""


class Tabular:
    """See the module. Public inputs: one FP64, INT64, BYTES or BOOL [-1] for each column."""

    kind = "tabular"
    padding: Padding | None = None

    def __init__(
        self, columns: Sequence[Column], layout: Layout, tabular_outputs: TabularOutputs
    ) -> None:
        self._columns = tuple(columns)
        self._names = {column.name for column in columns}
        self._layout = layout
        self._outputs = tabular_outputs
        self.inputs: tuple[TensorSpec, ...] = tuple(column.spec for column in columns)
        self.outputs: tuple[TensorSpec, ...] = tabular_outputs.specs

    @classmethod
    def create(
        cls,
        model_inputs: tuple[TensorSpec, ...],
        model_outputs: tuple[TensorSpec, ...],
        options: Mapping[str, Any],
    ) -> Tabular:
        """Fits columns and labels to the model's own tensors.

        Raises:
            ConfigError: an option is unknown, missing or contradicts another.
            ModelLoadError: the model's tensors do not fit the columns or the labels.
        """
        known = _read_options(options)
        columns = [_column(entry, model_inputs) for entry in known.columns]
        check_columns(columns)
        layout = Layout(columns, model_inputs)
        return cls(columns, layout, TabularOutputs(model_outputs, known.labels))

    def prepare(self, request: InferenceRequest) -> Prepared:
        """All rows of the request as one item.

        Raises:
            InvalidRequest: no rows, columns of different lengths, NaN where it means nothing,
                or a number too large for the model.
        """
        data = {tensor.name: tensor.data.reshape(-1) for tensor in request.inputs}
        rows = len(data[self._columns[0].name])
        for column in self._columns:
            values = data[column.name]
            if len(values) != rows:
                raise InvalidRequest(
                    f"column {column.name!r} has {len(values)} rows, but "
                    f"{self._columns[0].name!r} has {rows}",
                    hint="every column has one value for each row",
                    column=column.name,
                )
        if rows == 0:
            raise InvalidRequest("the request has no rows; expected at least one")
        return Prepared([Item(self._layout.arrays(data), rows)])

    def finish(
        self,
        request: InferenceRequest,  # noqa: ARG002 - the protocol's signature
        items: Sequence[Item],
        results: Sequence[Sequence[np.ndarray]],
    ) -> list[Tensor]:
        """The one item's outputs as the request's.

        Raises:
            InferenceFailed: the model did not give one answer for each row.
        """
        (item,), (arrays,) = items, results
        for array in arrays:
            if array.shape[:1] != (item.rows,):
                raise InferenceFailed(
                    f"the model gave shape {list(array.shape)} for {item.rows} rows"
                )
        return self._outputs.tensors(arrays)

    def from_records(self, records: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """JSON objects -> the public inputs. Every object has every column, and no other.

        Raises:
            InvalidRequest: no records, something that is not an object, a missing or unknown
                column, or a value of the wrong type; names the row and what was expected.
        """
        if not records:
            raise InvalidRequest("there are no records; expected a list of at least one object")
        for row, record in enumerate(records):
            if not isinstance(record, Mapping):
                raise InvalidRequest(
                    f"record {row} is a {type(record).__name__}; expected an object with the "
                    "columns as keys",
                    row=row,
                )
            if record.keys() != self._names:
                raise self._keys_differ(row, record)
        return [self._column_tensor(column, records) for column in self._columns]

    def to_records(self, outputs: Sequence[Tensor]) -> list[dict[str, Any]]:
        """The public outputs, or those of them that were asked for -> one object for each row."""
        return self._outputs.records(outputs)

    def _column_tensor(self, column: Column, records: Sequence[Mapping[str, Any]]) -> Tensor:
        data = array_from_values(column, [record[column.name] for record in records])
        return Tensor(column.name, column.datatype, data.shape, data)

    def _keys_differ(self, row: int, record: Mapping[str, Any]) -> InvalidRequest:
        unknown = [str(key) for key in record if key not in self._names]
        if unknown:
            close = difflib.get_close_matches(unknown[0], sorted(self._names), n=1)
            return InvalidRequest(
                f"record {row} has an unknown column {unknown[0]!r}",
                hint=f"did you mean {close[0]!r}?" if close else f"columns: {self._listed()}",
                row=row,
                column=unknown[0],
            )
        missing = next(column.name for column in self._columns if column.name not in record)
        return InvalidRequest(
            f"record {row} has no column {missing!r}",
            hint=f"every record has all of: {self._listed()}",
            row=row,
            column=missing,
        )

    def _listed(self) -> str:
        names = [column.name for column in self._columns]
        return ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:20])} ..."


def _column(entry: str | Column, model_inputs: Sequence[TensorSpec]) -> Column:
    if isinstance(entry, Column):
        return entry
    own = next((spec.datatype for spec in model_inputs if spec.name == entry), "")
    datatype: Datatype = "BYTES" if own == "BYTES" else "INT64" if "INT" in own else "FP64"
    return Column(entry, datatype)


def _read_options(options: Mapping[str, Any]) -> TabularOptions:
    if not options.get("columns"):
        raise ConfigError(
            "a tabular model needs the names of its columns",
            hint='[task_options] columns = [{name = "age", datatype = "INT64"}, ...]',
        )
    try:
        known = msgspec.convert(options, TabularOptions)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"task_options of a tabular model: {error}",
            hint=f"known options: {', '.join(TabularOptions.__struct_fields__)}",
        ) from None
    if len({type(label) for label in known.labels}) > 1:
        raise ConfigError(f"labels {list(known.labels)} are neither all names nor all numbers")
    return known
