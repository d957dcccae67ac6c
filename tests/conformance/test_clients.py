"""The real clients against a real server: one test for each cell of the conformance table."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # tritonclient asks for setuptools' pkg_resources
    from conformance import checks_other, checks_triton, differential, environments, servers
    from conformance.registry import CHECKS, Check
    from conformance.servers import Server

_ = checks_triton, checks_other  # imported for the checks they register


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with servers.headrace() as running:
        yield running


def _cell(check: Check) -> object:
    """Clients with an environment of their own are installed first, which takes minutes."""
    marks = [pytest.mark.slow] if check.needs else []
    return pytest.param(check, id=f"{check.feature} / {check.client}", marks=marks)


@pytest.mark.filterwarnings("ignore")  # of the clients' own
@pytest.mark.parametrize("check", [_cell(check) for check in CHECKS])
def test_the_client_works_unchanged(check: Check, server: Server) -> None:
    try:
        check.run(server)
    except environments.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_difference_to_triton_has_a_reason() -> None:
    try:
        _report, unexplained = differential.make()
    except environments.Unavailable as reason:
        pytest.skip(str(reason))
    assert not unexplained
