"""Times and sizes as people write them."""

from __future__ import annotations

import msgspec
import pytest

from headrace.lifetimes import ResidencyConfig, RolloutConfig
from headrace.units import duration_ns, size_bytes, size_text


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("500us", 500_000),
        ("50ms", 50_000_000),
        ("1.5s", 1_500_000_000),
        ("2m", 120_000_000_000),
        ("8h", 28_800_000_000_000),
        (" 3 s ", 3_000_000_000),
    ],
)
def test_times(text: str, nanoseconds: int) -> None:
    assert duration_ns(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "5", "ms", "-1s", "0s", "0.0001us", "1d", "1 s 2 ms", "1e3s"])
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="expected a time above 0") as caught:
        duration_ns(text)
    assert str(caught.value).endswith(f'such as "500us", "50ms" or "1.5s", got "{text}"')


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("7B", 7),
        ("1KiB", 1024),
        ("512MiB", 512 * 1024**2),
        ("1.5GiB", 3 * 512 * 1024**2),
        ("2TiB", 2 * 1024**4),
        ("4GB", 4 * 1000**3),
        ("1 KB", 1000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "4", "GiB", "-1GiB", "0MiB", "0.2B", "4gib", "4G", "1PiB"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size above 0") as caught:
        size_bytes(text)
    assert str(caught.value).endswith(f'such as "512MiB" or "4GiB", got "{text}"')


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (40 * 1024**2, "40 MiB"),
        (123 * 1024**2 + 400_000, "123 MiB"),
        (1000 * 1024**2, "1000 MiB"),
        (5 * 1024**4, "5 TiB"),
        (-3 * 1024**3, "-3 GiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize("text", ["0s", "1", "5 minutes", "-2s"])
def test_the_configuration_refuses_the_same(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"idle_unload": text}, ResidencyConfig)


def test_nothing_said_is_never_and_none() -> None:
    assert ResidencyConfig().idle_unload_ns == 0
    assert ResidencyConfig(idle_unload="10m").idle_unload_ns == 600_000_000_000
    assert RolloutConfig().guard_ns == 120_000_000_000
    assert RolloutConfig(guard="").guard_ns == 0
