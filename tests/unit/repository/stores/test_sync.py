"""Mirrors of real stores: a web server that misbehaves as told, and one that speaks S3."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import StoreError
from headrace.repository.stores.base import Patience
from headrace.repository.stores.spec import parse_store
from headrace.repository.stores.sync import SyncResult, sync
from tests.unit.repository.stores.web_site import Site, sha256

GIB = 1 << 30
AT_ONCE = Patience(tries=3, pauses_s=(0.0,))
ONE, TWO = b"one" * 100_000, b"two" * 100_000


def mirror(site: Site, folder: Path, digest: str, **options: Any) -> SyncResult:
    spec = parse_store(f"{site.url}/models/#sha256={digest}")
    assert spec is not None
    return sync(spec, folder, **({"max_bytes": GIB, "patience": AT_ONCE} | options))


def visible(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in names.items() if not name.startswith(".")}


def test_a_store_is_mirrored_once(site: Site, folder: Path) -> None:
    files = {"m/1/model.onnx": ONE, "m/config.pbtxt": b"name: 'm'"}
    digest = site.put(files)
    first = mirror(site, folder, digest)
    assert visible(folder) == files
    assert first.fetched_files == 2
    begun = len(site.asked)
    again = mirror(site, folder, digest)
    assert (again.fetched_files, again.landed) == (0, ())
    assert site.downloads(begun) == []


def test_what_changed_is_fetched_and_what_is_gone_goes(site: Site, folder: Path) -> None:
    mirror(site, folder, site.put({"m/1/model.onnx": ONE, "n/1/model.onnx": ONE}))
    begun = len(site.asked)
    result = mirror(site, folder, site.put({"m/1/model.onnx": ONE, "m/2/model.onnx": TWO}))
    assert visible(folder) == {"m/1/model.onnx": ONE, "m/2/model.onnx": TWO}
    assert [path for path, _ in site.downloads(begun)] == ["m/2/model.onnx"]
    assert any(each.startswith("n") for each in result.removed)


def test_a_download_that_breaks_off_goes_on_where_it_was(site: Site, folder: Path) -> None:
    digest = site.put({"m/1/model.onnx": ONE})
    site.cut["/models/m/1/model.onnx"] = [100_000]
    mirror(site, folder, digest)
    assert visible(folder) == {"m/1/model.onnx": ONE}
    assert site.downloads()[-1] == ("m/1/model.onnx", "bytes=100000-")
    assert site.sent["/models/m/1/model.onnx"] == len(ONE)


def test_the_next_sync_goes_on_where_this_one_gave_up(site: Site, folder: Path) -> None:
    digest = site.put({"m/1/model.onnx": ONE})
    site.cut["/models/m/1/model.onnx"] = [100_000]
    with pytest.raises(StoreError):
        mirror(site, folder, digest, patience=Patience(tries=1))
    assert visible(folder) == {}
    mirror(site, folder, digest)
    assert site.sent["/models/m/1/model.onnx"] == len(ONE)
    assert visible(folder) == {"m/1/model.onnx": ONE}


def test_a_wrong_digest_is_refused_and_the_old_version_stays(site: Site, folder: Path) -> None:
    mirror(site, folder, site.put({"m/1/model.onnx": ONE}))
    digest = site.put({"m/1/model.onnx": ONE, "m/2/model.onnx": TWO})
    site.instead["/models/m/2/model.onnx"] = b"bad" * 100_000
    result = mirror(site, folder, digest)
    (refused,) = result.refused
    assert "m/2" in refused.target
    assert sha256(TWO)[:12] in str(refused.error.message) + str(refused.error.details)
    assert visible(folder) == {"m/1/model.onnx": ONE}
    site.instead.clear()
    mirror(site, folder, digest)
    assert visible(folder)["m/2/model.onnx"] == TWO


def test_another_list_than_was_said_is_refused(site: Site, folder: Path) -> None:
    site.put({"m/1/model.onnx": ONE})
    with pytest.raises(StoreError, match="SHA256SUMS"):
        mirror(site, folder, "0" * 64)
    assert visible(folder) == {}


def test_a_store_that_is_down_takes_nothing_away(site: Site, folder: Path) -> None:
    digest = site.put({"m/1/model.onnx": ONE})
    mirror(site, folder, digest)
    site.stop()
    with pytest.raises(StoreError, match="cannot be reached"):
        mirror(site, folder, digest)
    assert visible(folder) == {"m/1/model.onnx": ONE}


def test_a_budget_is_kept_by_refusing(site: Site, folder: Path) -> None:
    digest = site.put({"m/1/model.onnx": ONE})
    mirror(site, folder, digest)
    digest = site.put({"m/1/model.onnx": ONE, "m/2/model.onnx": TWO})
    with pytest.raises(StoreError, match=r"room|bytes"):
        mirror(site, folder, digest, max_bytes=400_000)
    assert visible(folder) == {"m/1/model.onnx": ONE}


@pytest.mark.parametrize("path", ["../m/1/model.onnx", "/etc/model.onnx", "m\\1\\model.onnx"])
def test_names_that_leave_the_folder_are_refused(site: Site, folder: Path, path: str) -> None:
    with pytest.raises(StoreError):
        mirror(site, folder, site.put({path: ONE, "m/1/model.onnx": TWO}))
    assert visible(folder) == {}
    assert not (folder.parent / "m").exists()


def test_two_at_once_take_turns(site: Site, folder: Path) -> None:
    digest = site.put({"m/1/model.onnx": ONE})
    results: list[SyncResult] = []
    threads = [
        threading.Thread(target=lambda: results.append(mirror(site, folder, digest)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(result.fetched_files for result in results) == [0, 1]
    assert visible(folder) == {"m/1/model.onnx": ONE}


# -- a bucket --------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket on a server that speaks S3 over HTTP."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    client.close()
    server.stop()


@pytest.mark.filterwarnings("ignore")  # what moto and boto3 warn of is theirs
def test_a_bucket_is_mirrored_and_followed(bucket: Any, folder: Path) -> None:
    spec = parse_store("s3://bucket/models")
    assert spec is not None
    bucket.put_object(Bucket="bucket", Key="models/m/1/model.onnx", Body=ONE)
    bucket.put_object(Bucket="bucket", Key="elsewhere/n/1/model.onnx", Body=TWO)
    assert sync(spec, folder, max_bytes=GIB).fetched_files == 1
    assert visible(folder) == {"m/1/model.onnx": ONE}
    assert sync(spec, folder, max_bytes=GIB).fetched_files == 0
    bucket.put_object(Bucket="bucket", Key="models/m/2/model.onnx", Body=TWO)
    assert sync(spec, folder, max_bytes=GIB).fetched_files == 1
    assert visible(folder) == {"m/1/model.onnx": ONE, "m/2/model.onnx": TWO}
    bucket.delete_object(Bucket="bucket", Key="models/m/1/model.onnx")
    sync(spec, folder, max_bytes=GIB)
    assert visible(folder) == {"m/2/model.onnx": TWO}


@pytest.mark.filterwarnings("ignore")
def test_a_bucket_that_is_not_there_is_named(bucket: Any, folder: Path) -> None:
    spec = parse_store("s3://another-bucket/models")
    assert spec is not None
    with pytest.raises(StoreError, match="another-bucket"):
        sync(spec, folder, max_bytes=GIB, patience=AT_ONCE)
