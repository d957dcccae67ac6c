"""What is read equals what was written, and stays so for as long as anyone keeps it."""

from __future__ import annotations

import gc
import math
import os
from contextlib import contextmanager
from pathlib import Path

import hypothesis.extra.numpy as nps
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InferenceFailed
from headrace.runtimes import shared_tensors
from headrace.runtimes.shared_tensors import (
    INITIAL_BYTES,
    SEGMENTS,
    ArrayLayout,
    Parcel,
    TensorReader,
    TensorWriter,
    create_segments,
)
from headrace.types import DTYPE_OF


@contextmanager
def channel(*, max_bytes=64 * INITIAL_BYTES):
    descriptors = create_segments("test")
    writer = TensorWriter([os.dup(fd) for fd in descriptors], max_bytes=max_bytes)
    reader = TensorReader(descriptors)
    try:
        yield writer, reader
    finally:
        writer.close()
        reader.close()


def open_descriptors():
    return sorted(Path("/proc/self/fd").iterdir())


def send(writer, reader, arrays):
    return reader.read(writer.write(reader.next_segment(), arrays))


SHAPES = nps.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
NUMBERS = st.sampled_from([dtype for dtype in DTYPE_OF.values() if dtype.kind != "O"]).flatmap(
    lambda dtype: nps.arrays(dtype, SHAPES)
)
BYTES = nps.arrays(object, SHAPES, elements=st.binary(max_size=40), fill=st.nothing())
ARRAYS = st.lists(st.one_of(st.none(), NUMBERS, BYTES), max_size=5)


def same(read, written):
    if written is None or read is None:
        return read is None and written is None
    if read.dtype != written.dtype or read.shape != written.shape:
        return False
    if written.dtype == object:
        return read.tolist() == written.tolist()
    return read.tobytes() == written.tobytes()


@given(ARRAYS)
def test_every_dtype_and_shape_arrives_unchanged(arrays):
    with channel() as (writer, reader):
        result = send(writer, reader, arrays)
        assert len(result) == len(arrays)
        for read, written in zip(result, arrays, strict=True):
            assert same(read, written)
            assert read is None or (read.flags.c_contiguous and read.flags.writeable)


@given(st.lists(st.tuples(st.lists(NUMBERS, min_size=1, max_size=3), st.booleans()), max_size=12))
def test_what_was_read_never_changes_however_long_it_is_kept(steps):
    kept = []
    with channel() as (writer, reader):
        for arrays, keep in steps:
            result = send(writer, reader, arrays)
            if keep:
                kept.append((result, [array.copy() for array in arrays]))
            del result
            for read, written in kept:
                assert all(map(same, read, written))


@given(st.lists(ARRAYS, min_size=1, max_size=3), st.lists(st.integers(0, 2), max_size=12))
def test_batches_laid_out_alike_or_not_may_follow_in_any_order(batches, order):
    """What is known of the last one in a segment is used only for its like."""
    with channel() as (writer, reader):
        for index in order:
            sent = batches[index % len(batches)]
            read = send(writer, reader, sent)
            assert len(read) == len(sent)
            assert all(map(same, read, sent))
            del read


def test_one_layout_with_other_values_is_written_anew():
    with channel() as (writer, reader):
        for value in range(2 * SEGMENTS):
            (read,) = send(writer, reader, [np.full((3, 4), value, np.float32)])
            assert (read == value).all()
            assert read.shape == (3, 4)
            del read
        (read,) = send(writer, reader, [np.full((4, 3), 9, np.float32)])
        assert read.shape == (4, 3)


def test_a_slice_of_what_was_read_is_enough_to_keep_it():
    with channel() as (writer, reader):
        part = send(writer, reader, [np.arange(1000)])[0].reshape(10, 100)[3, 5:9]
        for _ in range(2 * SEGMENTS):
            send(writer, reader, [np.zeros(1000, np.int64)])
        assert part.tolist() == [305, 306, 307, 308]


def test_arrays_are_lent_and_not_copied_while_segments_are_free():
    with channel() as (writer, reader):
        lent = [send(writer, reader, [np.arange(4)]) for _ in range(SEGMENTS - 1)]
        assert all(result[0].base is not None for result in lent)
        copied = send(writer, reader, [np.arange(4)])
        assert copied[0].base is None
        lent.clear()
        gc.collect()
        assert send(writer, reader, [np.arange(4)])[0].base is not None


def test_one_segment_is_used_again_and_again_when_nothing_is_kept():
    with channel() as (writer, reader):
        used = set()
        for _ in range(10):
            used.add(reader.next_segment())
            send(writer, reader, [np.arange(100)])
        assert len(used) == 1


def test_naming_the_next_segment_twice_names_the_same():
    with channel() as (_, reader):
        assert reader.next_segment() == reader.next_segment()


def test_arrays_in_any_memory_order_are_taken():
    matrix = np.arange(24).reshape(4, 6)
    with channel() as (writer, reader):
        result = send(writer, reader, [matrix.T, matrix[::2, ::-1]])
        assert np.array_equal(result[0], matrix.T)
        assert np.array_equal(result[1], matrix[::2, ::-1])


def test_segments_grow_to_what_is_needed_and_earlier_arrays_survive_it():
    with channel() as (writer, reader):
        small = send(writer, reader, [np.arange(10)])[0]
        for factor in (1, 2, 7, 3):
            big = np.full(factor * INITIAL_BYTES + 1, factor, np.uint8)
            assert np.array_equal(send(writer, reader, [big])[0], big)
        assert small.tolist() == list(range(10))


def test_more_than_the_limit_is_refused_by_its_name_and_the_next_parcel_goes_through():
    with channel(max_bytes=2 * INITIAL_BYTES) as (writer, reader):
        with pytest.raises(InferenceFailed, match=r"max_shared_bytes is 2097152") as caught:
            send(writer, reader, [np.zeros(3 * INITIAL_BYTES, np.uint8)])
        assert caught.value.details["got"] == 3 * INITIAL_BYTES
        assert send(writer, reader, [np.arange(3)])[0].tolist() == [0, 1, 2]
        exact = np.ones(2 * INITIAL_BYTES, np.uint8)
        assert send(writer, reader, [exact])[0].sum() == 2 * INITIAL_BYTES


def test_memory_that_cannot_be_had_is_an_error_that_says_so(monkeypatch):
    def refuse(*_):
        raise OSError(12, "Cannot allocate memory")

    with channel() as (writer, reader):
        monkeypatch.setattr(shared_tensors.os, "ftruncate", refuse)
        with pytest.raises(InferenceFailed, match=r"bytes of shared memory to be had.*allocate"):
            send(writer, reader, [np.zeros(2 * INITIAL_BYTES, np.uint8)])


@pytest.mark.parametrize(
    "layout",
    [
        ArrayLayout("<f4", (10,), INITIAL_BYTES - 39, 40),
        ArrayLayout("<f4", (1 << 40,), 0, 40),
        ArrayLayout("<f4", (-1,), 0, 4),
        ArrayLayout("<f4", (1,), -8, 4),
        ArrayLayout("|V8", (1,), 0, 8),
        ArrayLayout("|O", (1 << 40,), 0, 8),
        ArrayLayout("|O", (1,), INITIAL_BYTES, 8),
        ArrayLayout("|O", (1,), -64, 8),
        ArrayLayout("|O", (1,), 0, 4),
        ArrayLayout("|O", (1,), 0, 100),
        ArrayLayout("|O", (-1, 3), 0, 64),
        ArrayLayout("|O", (-1, -3), 0, 24),
    ],
)
def test_a_parcel_that_lies_is_refused_and_touches_no_memory(layout):
    with channel() as (writer, reader):
        writer.write(reader.next_segment(), [np.full(64, 255, np.uint8)])
        with pytest.raises(ValueError, match=r"."):
            reader.read(Parcel(reader.next_segment(), INITIAL_BYTES, (layout,)))


def test_a_parcel_for_another_segment_or_beyond_the_file_is_refused():
    with channel() as (writer, reader):
        parcel = writer.write(reader.next_segment(), [np.arange(3)])
        with pytest.raises(ValueError, match="was named"):
            reader.read(Parcel((parcel.segment + 1) % SEGMENTS, parcel.size, parcel.arrays))
        with pytest.raises(ValueError, match="size"):
            reader.read(Parcel(parcel.segment, 64 * INITIAL_BYTES, parcel.arrays))


def test_a_peer_cannot_shrink_a_segment_under_its_reader():
    descriptors = create_segments("test")
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(descriptors[0], 0)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def test_closing_gives_back_every_descriptor_and_arrays_live_on():
    before = open_descriptors()
    with channel() as (writer, reader):
        kept = send(writer, reader, [np.arange(5)])[0]
        send(writer, reader, [np.zeros(5 * INITIAL_BYTES)])
    assert kept.tolist() == [0, 1, 2, 3, 4]
    del kept
    gc.collect()
    assert open_descriptors() == before


def test_segments_that_cannot_all_be_made_leave_none_behind(monkeypatch):
    made = []

    def make(*arguments):
        if len(made) == SEGMENTS - 1:
            raise OSError(24, "Too many open files")
        made.append(real(*arguments))
        return made[-1]

    real = os.memfd_create
    before = open_descriptors()
    monkeypatch.setattr(os, "memfd_create", make)
    with pytest.raises(OSError, match="Too many"):
        create_segments("test")
    assert open_descriptors() == before


@given(st.lists(st.integers(0, 3 * INITIAL_BYTES), min_size=1, max_size=6))
def test_a_parcel_lies_aligned_and_without_overlap(sizes):
    with channel() as (writer, reader):
        parcel = writer.write(reader.next_segment(), [np.empty(n, np.uint8) for n in sizes])
        ends = [layout.offset + layout.nbytes for layout in parcel.arrays]
        starts = [layout.offset for layout in parcel.arrays]
        assert all(start % shared_tensors.ALIGNMENT == 0 for start in starts)
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
        assert max(ends) <= parcel.size
        assert [math.prod(layout.shape) for layout in parcel.arrays] == sizes
