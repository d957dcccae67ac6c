"""Texts -> rows of token numbers, for whatever inputs a text model has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from headrace.errors import InvalidRequest, PayloadTooLarge
from headrace.tasks.base import Item, Padding, Prepared
from headrace.tasks.text_inputs import TEXT_INPUT, TokenInputs
from headrace.tasks.text_options import TextOptions
from headrace.tasks.text_tokenizer import load_tokenizer, padding_id
from headrace.types import DTYPE_OF, InferenceRequest, TensorSpec

if TYPE_CHECKING:
    from tokenizers import Encoding

_Fill = Callable[["Encoding", list[int]], np.ndarray]
"""Makes one input of one text: ``[1, tokens]`` from its encoding and its token numbers."""


class TextItems:
    """The first half of a text task: checks texts, tokenises them, lays out their tensors.

    ``padding`` is None where the engine cannot fill rows up: the model has no
    ``attention_mask``, so texts only meet others of their length, or it takes one fixed
    length, to which every item is filled up here.
    """

    def __init__(self, model_inputs: Sequence[TensorSpec], options: TextOptions) -> None:
        layout = TokenInputs(model_inputs)
        self._fixed = layout.fixed_tokens
        if self._fixed:
            limit = min(options.max_tokens, self._fixed)
            options = msgspec.structs.replace(options, max_tokens=limit)
        self._options = options
        self._tokenizer = load_tokenizer(options)
        self._mask_at = layout.position("attention_mask")
        fills = {"input_ids": padding_id(self._tokenizer, options)}
        self._pad_values = tuple(
            fills.get(spec.name, 0) if spec.name in layout.names else None for spec in model_inputs
        )
        self._fills = tuple(self._filler(spec, spec.name in layout.names) for spec in model_inputs)
        padded = self._mask_at is not None and not self._fixed
        self.padding = Padding(self._pad_values) if padded else None

    def prepare(self, request: InferenceRequest) -> Prepared:
        """One item of one row for each text.

        Raises:
            InvalidRequest: no text, a text that is not UTF-8, or one that is too long where
                ``truncate`` is false.
            PayloadTooLarge: more than ``max_texts``, or one longer than ``max_text_bytes``.
        """
        texts = self._texts(request.inputs[0].data)
        items: list[Item] = []
        tokens = 0
        for index, encoding in enumerate(self._tokenizer.encode_batch_fast(texts)):
            numbers = encoding.ids
            count = len(numbers)
            if not 0 < count <= self._options.max_tokens:
                raise self._length_error(index, count)
            arrays = tuple(
                [None if fill is None else fill(encoding, numbers) for fill in self._fills]
            )
            if self._fixed:
                arrays = self._widened(arrays, count)
            items.append(Item(arrays, 1, 0 if self.padding is None else count))
            tokens += count
        return Prepared(items, tokens)

    def token_count(self, item: Item) -> int:
        """How many tokens of an item are the text's own, not padding."""
        if not self._fixed:
            return int(next(array.shape[1] for array in item.arrays if array is not None))
        mask = item.arrays[self._mask_at or 0]
        assert mask is not None  # a fixed length is refused without an attention_mask
        return int(mask.sum())

    def _texts(self, data: np.ndarray) -> list[str]:
        limit, prefix = self._options.max_text_bytes, self._options.prefix
        self._check_number(len(data))
        texts: list[str] = []
        for index, raw in enumerate(data.tolist()):
            if len(raw) > limit:
                raise PayloadTooLarge(
                    f"text {index} has {len(raw):,} bytes; max_text_bytes is {limit:,}",
                    hint="send its parts as texts of their own",
                    index=index,
                    limit=limit,
                    got=len(raw),
                )
            try:
                texts.append(prefix + raw.decode())
            except UnicodeDecodeError as error:
                raise InvalidRequest(
                    f"text {index} is not UTF-8: {error.reason} at byte {error.start}",
                    hint="encode texts as UTF-8",
                    input=TEXT_INPUT.name,
                    index=index,
                ) from None
        return texts

    def _check_number(self, count: int) -> None:
        limit = self._options.max_texts
        if not count:
            raise InvalidRequest(
                "the request has no text; expected at least one", input=TEXT_INPUT.name
            )
        if count > limit:
            raise PayloadTooLarge(
                f"the request has {count:,} texts; max_texts is {limit:,}",
                hint="send them in several requests",
                limit=limit,
                got=count,
            )

    def _length_error(self, index: int, count: int) -> InvalidRequest:
        limit = self._options.max_tokens
        if not count:
            return InvalidRequest(
                f"text {index} has no token the model knows", input=TEXT_INPUT.name, index=index
            )
        return InvalidRequest(
            f"text {index} has {count:,} tokens; max_tokens is {limit:,}",
            hint="shorten it; with the model's option truncate = true it would be cut off",
            input=TEXT_INPUT.name,
            index=index,
            limit=limit,
            got=count,
        )

    def _filler(self, spec: TensorSpec, known: bool) -> _Fill | None:
        """Constant inputs are slices of one array made here: no allocation for each text."""
        if not known:
            return None
        dtype, most = DTYPE_OF[spec.datatype], self._options.max_tokens
        match spec.name:
            case "input_ids":
                return lambda _, numbers: np.array([numbers], dtype)
            case "token_type_ids":
                return lambda encoding, _: np.array([encoding.type_ids], dtype)
            case "attention_mask":
                whole = np.ones((1, most), dtype)
            case _:
                whole = self._options.position_offset + np.arange(most, dtype=dtype)[None]
        return lambda _, numbers: whole[:, : len(numbers)]

    def _widened(
        self, arrays: tuple[np.ndarray | None, ...], count: int
    ) -> tuple[np.ndarray | None, ...]:
        filled: list[np.ndarray | None] = []
        for array, value in zip(arrays, self._pad_values, strict=True):
            if array is None:
                filled.append(None)
                continue
            whole = np.full((1, self._fixed), value, array.dtype)
            whole[:, :count] = array
            filled.append(whole)
        return tuple(filled)
