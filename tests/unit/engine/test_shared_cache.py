"""Answers that several servers share, with a real Redis: slow, gone, full of rubbish."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config import CacheConfig, SharedCacheConfig
from headrace.engine import shared_cache
from headrace.engine.engine import Engine
from headrace.engine.shared_cache import SharedTier, decoded, encoded
from headrace.errors import ConfigError
from headrace.testing.fakes import FakeModel
from headrace.types import InferenceResponse, Tensor, Usage

from .assembled import assemble, publish
from .test_response_cache import x

SECOND_NS = 1_000_000_000
SECRET = b"sixteen bytes or more"
KEY = b"k" * 32


def response(array, datatype="FP32") -> InferenceResponse:
    tensor = Tensor("y", datatype, array.shape, array)
    return InferenceResponse("m", "1", "", [tensor], {"a": 1}, Usage(7))


@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        (np.arange(6, dtype=np.float32).reshape(2, 3), "FP32"),
        (np.zeros((0, 4), np.int64), "INT64"),
        (np.array([[True], [False]]), "BOOL"),
        (np.array([b"a", b"", b"\xff\x00"], dtype=object), "BYTES"),
    ],
)
def test_what_goes_out_comes_back(array, datatype):
    back = decoded(encoded(response(array, datatype), SECRET, KEY), SECRET, KEY)

    assert back is not None
    (tensor,) = back.outputs
    assert (tensor.name, tensor.datatype, tuple(tensor.shape)) == ("y", datatype, array.shape)
    assert tensor.data.tolist() == array.tolist()
    assert (back.parameters, back.usage) == ({"a": 1}, Usage(7))


@given(st.binary(max_size=200))
def test_rubbish_is_not_there(value):
    assert decoded(value, SECRET, KEY) is None


@given(st.integers(0, 100), st.integers(1, 255))
def test_a_damaged_value_is_not_there(at, flipped):
    value = bytearray(encoded(response(np.ones((1, 4), np.float32)), SECRET, KEY))
    value[at % len(value)] ^= flipped

    assert decoded(bytes(value), SECRET, KEY) is None


class Redis:
    """A server of the test's own, on a socket in its folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "redis.sock"
        self.command = [
            "redis-server", "--port", "0", "--unixsocket", str(self.path),
            "--save", "", "--appendonly", "no", "--dir", str(folder),
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    async def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)  # noqa: ASYNC220
        from redis.asyncio import Redis as Client

        client = Client.from_url(self.url)
        for _ in range(200):
            try:
                await client.ping()
                break
            except Exception:  # noqa: BLE001 - it is not there yet
                await asyncio.sleep(0.02)
        else:
            raise AssertionError("redis-server did not start")
        await client.aclose()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
async def redis(tmp_path):
    pytest.importorskip("redis", reason="the extra redis is not installed")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    server = Redis(tmp_path)
    await server.start()
    yield server
    server.kill()


class Server:
    """An engine with a place to share answers in."""

    def __init__(self, url: str, **config) -> None:
        self.told: list[str] = []
        self.now_ns = SECOND_NS
        settings = SharedCacheConfig(url=url, timeout_s=config.pop("timeout_s", 2.0), **config)
        self.tier = SharedTier(settings, lambda: self.now_ns, self.told.append)
        self.engine = Engine(
            instances=1,
            preprocess_threads=1,
            response_cache_bytes=1_000_000,
            shared_cache=self.tier,
        )
        self.model = FakeModel()

    def serve(self, fingerprint="f", **config):
        served = assemble(self.model, response_cache=True, **config)
        served.fingerprint = fingerprint
        return publish(self.engine, served)

    async def infer(self, *values, **fields):
        answer = await self.engine.infer(x(*values, **fields))
        return answer.outputs[0].data.tolist()

    async def close(self) -> None:
        self.engine.close()
        await self.tier.close()


@pytest.fixture
async def two(redis):
    servers = [Server(redis.url), Server(redis.url)]
    yield servers
    for server in servers:
        await server.close()


async def written(server: Server) -> None:
    await asyncio.gather(*server.tier._writes)


async def test_one_server_answers_what_another_was_asked(two):
    first, second = two
    for server in two:
        server.serve()
    assert await first.infer(1, 2, 3, 4) == [[2, 4, 6, 8]]
    await written(first)
    assert await second.infer(1, 2, 3, 4) == [[2, 4, 6, 8]]

    assert (len(first.model.calls), len(second.model.calls)) == (1, 0)
    assert (first.told, second.told) == (["miss"], ["hit"])
    await second.infer(1, 2, 3, 4)
    assert second.told == ["hit"], "and then it has it itself"


async def test_another_model_content_tenant_or_version_has_answers_of_its_own(two):
    first, second = two
    first.serve("one")
    second.serve("another")
    await first.infer(1, 2, 3, 4)
    await first.infer(1, 2, 3, 4, tenant="a")
    await written(first)
    await second.infer(1, 2, 3, 4)

    assert (first.told, second.told) == (["miss", "miss"], ["miss"])


async def test_equal_requests_look_once_and_run_once(two):
    first, _ = two
    first.serve()
    answers = await asyncio.gather(*(first.infer(5, 5, 5, 5) for _ in range(20)))

    assert answers == [[[10, 10, 10, 10]]] * 20
    assert (first.told, len(first.model.calls)) == (["miss"], 1)


async def test_a_ttl_goes_with_it(two, redis):
    from redis.asyncio import Redis as Client

    first, _ = two
    first.serve(cache=CacheConfig(ttl="5s"))
    await first.infer(1, 2, 3, 4)
    await written(first)
    client = Client.from_url(redis.url)
    (key,) = await client.keys("headrace:*")
    assert 0 < await client.pttl(key) <= 5000
    await client.set(key, b"rubbish")
    await client.aclose()


async def test_what_it_holds_may_be_rubbish(two, redis):
    from redis.asyncio import Redis as Client

    first, second = two
    for server in two:
        server.serve()
    await first.infer(1, 2, 3, 4)
    await written(first)
    client = Client.from_url(redis.url)
    for key in await client.keys("headrace:*"):
        await client.set(key, b"hrc1" + b"x" * 40)
    await client.aclose()

    assert await second.infer(1, 2, 3, 4) == [[2, 4, 6, 8]]
    assert second.told == ["refused"]


@pytest.mark.parametrize(
    ("secret", "outputs"),
    [
        (b"another secret", [Tensor("y", "FP32", (1, 4), np.zeros((1, 4), np.float32))]),
        (SECRET, [Tensor("y", "INT32", (1, 4), np.zeros((1, 4), np.int32))]),
        (SECRET, [Tensor("y", "FP32", (1, 5), np.zeros((1, 5), np.float32))]),
        (SECRET, [Tensor("y", "FP32", (2, 4), np.zeros((2, 4), np.float32))]),
        (SECRET, [Tensor("z", "FP32", (1, 4), np.zeros((1, 4), np.float32))]),
        (SECRET, []),
    ],
)
async def test_what_the_model_could_not_have_answered_is_a_miss(redis, tmp_path, secret, outputs):
    from redis.asyncio import Redis as Client

    (tmp_path / "key").write_bytes(SECRET)
    server = Server(redis.url, key_file=str(tmp_path / "key"))
    served = server.serve()
    asked: list[bytes] = []
    name = server.tier._name
    server.tier._name = lambda key: asked.append(key) or name(key)
    await server.infer(1, 2, 3, 4)
    await written(server)
    poison = InferenceResponse(served.name, served.version, "", outputs)
    client = Client.from_url(redis.url)
    await client.set(name(asked[0]), encoded(poison, secret, asked[0]))
    await client.aclose()
    other = Server(redis.url, key_file=str(tmp_path / "key"))
    other.serve()

    assert await other.infer(1, 2, 3, 4) == [[2, 4, 6, 8]]
    assert other.told == ["refused"]
    await server.close()
    await other.close()


def test_a_value_counts_for_its_own_key_alone():
    value = encoded(response(np.ones((1, 4), np.float32)), SECRET, KEY)
    assert decoded(value, SECRET, b"l" * 32) is None


def test_a_list_of_bytes_is_no_number():
    kept = shared_cache._Kept("y", "FP32", (1,), [b"a"])
    body = msgspec.msgpack.encode(shared_cache._Value("m", "1", [kept]))
    value = b"hrc2" + shared_cache._sum(SECRET, KEY, body) + body
    assert decoded(value, SECRET, KEY) is None


@pytest.mark.parametrize(
    ("url", "key", "refused"),
    [
        ("redis://127.0.0.1:1/0", None, True),
        ("redis://:secret@127.0.0.1:1/0", None, False),
        ("redis://127.0.0.1:1/0", b"x" * 32, False),
        ("redis://127.0.0.1:1/0", b"short", True),
        ("unix:///nowhere", None, False),
    ],
)
def test_answers_are_authenticated(tmp_path, url, key, refused):
    pytest.importorskip("redis", reason="the extra redis is not installed")
    file = tmp_path / "key"
    file.write_bytes(key or b"")
    config = SharedCacheConfig(url=url, key_file=str(file) if key else "")
    with pytest.raises(ConfigError) if refused else contextlib.nullcontext():
        SharedTier(config, lambda: 0)


async def test_when_it_is_gone_every_request_is_answered_and_it_is_left_alone(two, redis, caplog):
    first, _ = two
    first.serve()
    await first.infer(0, 0, 0, 0)
    await written(first)
    redis.kill()
    for value in range(1, 8):
        assert await first.infer(value, 0, 0, 0) == [[2 * value, 0, 0, 0]]
    await written(first)

    assert 2 <= first.told.count("error") <= 4
    assert caplog.text.count("left alone") == 1
    first.now_ns += 6 * SECOND_NS
    await redis.start()
    await first.infer(9, 0, 0, 0)
    assert first.told[-1] == "miss", "and asked again later"


async def test_a_slow_one_costs_one_short_look(tmp_path):
    async def silent(reader, writer):
        await reader.read()  # until the other side has enough of it
        writer.close()

    path = tmp_path / "silent.sock"
    listening = await asyncio.start_unix_server(silent, str(path))
    server = Server(f"unix://{path}", timeout_s=0.01)
    server.serve()

    assert await server.infer(1, 2, 3, 4) == [[2, 4, 6, 8]]
    assert server.told[0] == "error"
    await server.close()
    listening.close()


async def test_a_client_that_leaves_while_it_is_looked_up(two):
    first, _ = two
    first.serve()
    leader = asyncio.create_task(first.infer(1, 2, 3, 4))
    follower = asyncio.create_task(first.infer(1, 2, 3, 4))
    await asyncio.sleep(0)
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)

    assert await follower == [[2, 4, 6, 8]]
    assert await first.engine.drain(10)


def test_a_url_that_is_none_is_told():
    pytest.importorskip("redis", reason="the extra redis is not installed")
    with pytest.raises(ConfigError, match=r"server\.shared_cache\.url"):
        SharedTier(SharedCacheConfig(url="ftp://x"), lambda: 0)
