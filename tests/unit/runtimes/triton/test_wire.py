"""Messages between a server and the child of a Triton model, over a real pair of sockets."""

from __future__ import annotations

import gc
import os
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from headrace.errors import InferenceFailed
from headrace.runtimes.python.messages import Disconnected
from headrace.runtimes.python.triton.wire import (
    MAX_INLINE_BYTES,
    Answer,
    Cancel,
    Execute,
    HostAnswer,
    Line,
    Outbox,
    RequestInfo,
    TensorInfo,
    read_tensor,
)
from headrace.types import DTYPE_OF

MAX_BYTES = 2**26


class Pair:
    """Both ends."""

    def __init__(self) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.raw = there
        self.here = Line(here, Answer | Cancel, max_bytes=MAX_BYTES)
        self.there = Line(there, Execute | HostAnswer | Cancel | Answer, max_bytes=MAX_BYTES)

    def pass_on(self, *tensors: tuple[str, np.ndarray]) -> list[np.ndarray]:
        """One message with these tensors: what arrives."""
        self.put(*tensors)
        answer, buffer = self.there.receive()
        return [read_tensor(info, buffer) for info in answer.outputs]

    def put(self, *tensors: tuple[str, np.ndarray], key: int = 1) -> None:
        outbox = Outbox()
        infos = tuple(
            outbox.add(f"t{i}", datatype, data) for i, (datatype, data) in enumerate(tensors)
        )
        self.here.send(Answer(key, infos, None, True), outbox)

    def close(self) -> None:
        for line in (self.here, self.there):
            line.hang_up()
            line.close()


@pytest.fixture
def pair():
    pair = Pair()
    yield pair
    pair.close()


def descriptors() -> int:
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def of(datatype: str, shape) -> st.SearchStrategy[np.ndarray]:
    dtype = DTYPE_OF[datatype]
    if datatype == "BYTES":
        return arrays(object, shape, elements=st.binary(max_size=40), fill=st.nothing())
    return arrays(dtype, shape)


def equal(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype == object:
        return one.shape == other.shape and one.tolist() == other.tolist()
    return (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes())


SHAPES = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
TENSORS = st.lists(
    st.sampled_from(list(DTYPE_OF)).flatmap(
        lambda name: st.tuples(st.just(name), of(name, SHAPES))
    ),
    max_size=6,
)


@given(TENSORS)
@settings(max_examples=150)
def test_what_is_sent_arrives(tensors):
    pair = Pair()
    try:
        got = pair.pass_on(*tensors)
        assert len(got) == len(tensors)
        assert all(equal(data, array) for (_, data), array in zip(tensors, got, strict=True))
    finally:
        pair.close()


@pytest.mark.parametrize("datatype", list(DTYPE_OF))
@pytest.mark.parametrize("size", [0, 1, MAX_INLINE_BYTES - 1, MAX_INLINE_BYTES + 1, 3_000_001])
def test_every_datatype_in_the_packet_and_in_a_file(pair, datatype, size):
    count = max(0, size // DTYPE_OF[datatype].itemsize) if size > 1 else size
    numbers = np.arange(count)
    if datatype == "BYTES":
        data = np.array([str(number).encode() for number in numbers], dtype=object)
        data = np.append(data, [b"", b"\0"]) if count else data
    else:
        data = (numbers % 2 if datatype == "BOOL" else numbers % 100).astype(DTYPE_OF[datatype])
    scalar = np.zeros(3, np.int8)
    got = pair.pass_on((datatype, data), ("INT8", scalar))
    assert equal(got[0], data)
    assert equal(got[1], scalar)


def test_arrays_in_any_order_of_their_elements(pair):
    square = np.arange(40_000, dtype=np.int32).reshape(200, 200)
    for view in (square[::2, ::3], square.T, square[::-1], np.asfortranarray(square)):
        (got,) = pair.pass_on(("INT32", view))
        assert (got == view).all()
        assert got.flags.c_contiguous


@pytest.mark.parametrize("count", [10, 100_000])
def test_what_arrived_is_the_receivers_own(pair, count):
    """It may be changed, and the next message does not change it."""
    data = np.arange(count)
    (first,) = pair.pass_on(("INT64", data))
    first += 1
    (second,) = pair.pass_on(("INT64", np.zeros(count, np.int64)))
    assert (first == np.arange(1, count + 1)).all()
    assert (data == np.arange(count)).all()
    assert not second.any()


def test_a_file_is_gone_with_its_last_array(pair):
    before = descriptors()
    big = np.ones(1_000_000, np.uint8)
    kept = [pair.pass_on(("UINT8", big), ("UINT8", big)) for _ in range(5)]
    assert all(array.all() for pieces in kept for array in pieces)
    del kept
    assert descriptors() == before


def test_a_file_that_nobody_reads_is_gone_with_the_pair():
    before = descriptors()
    pair = Pair()
    for _ in range(3):
        pair.put(("UINT8", np.ones(100_000, np.uint8)))
    pair.close()
    del pair
    assert descriptors() == before


@pytest.mark.parametrize("tensors", [0, 3, 2500])
@pytest.mark.parametrize("characters", [10, 200_000])
def test_messages_of_any_length(pair, tensors, characters):
    """More requests and longer parameters than a packet takes."""
    outbox = Outbox()
    data = [np.array([i], np.int32) for i in range(tensors)]
    requests = [
        RequestInfo(
            i, "id", (outbox.add("x", "INT32", array),), None, {"text": "y" * 10}, "s", 3, 1, 2
        )
        for i, array in enumerate(data)
    ]
    requests.append(RequestInfo(-1, "", (), ("a",), {"p": "z" * characters}, 0, 0, 0, 0))
    thread = threading.Thread(target=pair.here.send, args=(Execute(requests), outbox))
    thread.start()
    message, buffer = pair.there.receive()
    thread.join(30)
    assert message == Execute(requests)
    got = [read_tensor(one.inputs[0], buffer) for one in message.requests[:-1]]
    assert [int(array[0]) for array in got] == list(range(tensors))


def test_tensors_beyond_the_limit_are_refused_and_nothing_else_is(pair):
    with pytest.raises(InferenceFailed, match="max_shared_bytes"):
        pair.put(("UINT8", np.zeros(MAX_BYTES + 1, np.uint8)))
    assert equal(pair.pass_on(("INT8", np.ones(2, np.int8)))[0], np.ones(2, np.int8))


def test_elements_that_are_no_bytes_are_sent_as_their_text(pair):
    """As Triton's serialize_byte_tensor has it."""
    (got,) = pair.pass_on(("BYTES", np.array([1, None, "ü", b"\xff", 2.5], dtype=object)))
    assert got.tolist() == [b"1", b"None", "ü".encode(), b"\xff", b"2.5"]


def test_threads_do_not_mix_their_messages(pair):
    def send(number: int) -> None:
        for _ in range(50):
            size = 40_000 if number % 2 else 10
            pair.put(("INT32", np.full(size, number, np.int32)), key=number)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    counts = dict.fromkeys(range(8), 0)
    for _ in range(400):
        answer, buffer = pair.there.receive()
        assert (read_tensor(answer.outputs[0], buffer) == answer.key).all()
        counts[answer.key] += 1
    for thread in threads:
        thread.join(30)
    assert set(counts.values()) == {50}


class TestEnds:
    def test_the_other_side_has_hung_up(self, pair):
        pair.here.hang_up()
        with pytest.raises(Disconnected):
            pair.there.receive()
        with pytest.raises(Disconnected):
            pair.there.send(Cancel(1))

    def test_what_was_sent_before_is_still_read(self, pair):
        pair.put(("INT8", np.ones(1, np.int8)))
        pair.here.hang_up()
        assert pair.there.receive()[0].key == 1
        with pytest.raises(Disconnected):
            pair.there.receive()

    def test_a_closed_end_sends_nothing(self, pair):
        pair.here.hang_up()
        pair.here.close()
        with pytest.raises(Disconnected):
            pair.here.send(Cancel(1))

    def test_who_waits_to_send_is_woken(self, pair):
        """Nobody reads, so the thread is stuck before long."""
        ended = threading.Event()

        def send() -> None:
            try:
                while True:
                    pair.put(("UINT8", np.zeros(40_000, np.uint8)))
            except Disconnected:
                ended.set()

        thread = threading.Thread(target=send)
        thread.start()
        pair.here.hang_up()
        pair.here.close()
        thread.join(30)
        assert ended.is_set()

    @pytest.mark.parametrize(
        "packet",
        [b"x", b"\1\0\0\0", b"\0\0\0\0", b"\xff\xff\xff\xff123", b"\5\0\0\0hello", os.urandom(999)],
    )
    def test_garbage_ends_the_conversation(self, pair, packet):
        pair.raw.send(packet)
        with pytest.raises(Disconnected):
            pair.here.receive()

    @pytest.mark.parametrize(
        "info",
        [
            TensorInfo("t", "INT32", (4,), 8, 16),
            TensorInfo("t", "INT32", (3,), 0, 16),
            TensorInfo("t", "BYTES", (1,), 10, 7),
        ],
    )
    def test_a_tensor_that_is_not_there_is_not_read(self, info):
        with pytest.raises(Disconnected):
            read_tensor(info, bytearray(16))
