"""Files, variables and flags: who wins, who is named when it is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.config import Config, ModelConfig, ServerConfig, TlsConfig
from headrace.errors import ConfigError, without_folders
from headrace.loading import cache_folder, config_file, explain, load_config


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "headrace.toml"


def refusal(file: Path | None, env: Mapping[str, str], flags: Mapping[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(file, env, flags)
    return caught.value


# --- what is said


def test_nothing_said_is_the_default() -> None:
    loaded = load_config(None, {}, {})
    assert loaded.config == Config()
    assert loaded.origins == {}
    assert loaded.settings == {}


@given(
    in_file=st.none() | st.integers(0, 65535),
    in_env=st.none() | st.integers(0, 65535),
    in_flag=st.none() | st.integers(0, 65535),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_strongest_source_wins_and_is_named(
    toml: Path, in_file: int | None, in_env: int | None, in_flag: int | None
) -> None:
    toml.write_text("" if in_file is None else f"[server]\nport = {in_file}\n")
    env = {} if in_env is None else {"HEADRACE_SERVER__PORT": str(in_env)}
    loaded = load_config(toml, env, {"server.port": in_flag})
    said = [
        (in_flag, "--port"),
        (in_env, "HEADRACE_SERVER__PORT"),
        (in_file, f"{toml}:2"),
        (ServerConfig().port, None),
    ]
    value, origin = next((value, origin) for value, origin in said if value is not None)
    assert loaded.config.server.port == value
    assert loaded.origins.get("server.port") == origin


def test_sources_are_merged_field_by_field(toml: Path) -> None:
    toml.write_text('[server]\nhost = "0.0.0.0"\nport = 1\n[server.limits]\nmax_headers = 7\n')
    loaded = load_config(
        toml,
        {"HEADRACE_SERVER__LIMITS__MAX_PIPELINED": "3", "UNRELATED": "1"},
        {"server.port": 2, "server.workers": None},
    )
    server = loaded.config.server
    assert (server.host, server.port, server.workers) == ("0.0.0.0", 2, 1)
    assert (server.limits.max_headers, server.limits.max_pipelined) == (7, 3)


def test_a_value_set_to_its_default_is_still_a_setting(toml: Path) -> None:
    toml.write_text("[defaults]\ninstances = 4\n[models.iris]\ninstances = 0\n")
    loaded = load_config(toml, {}, {})
    assert loaded.settings["models"]["iris"] == {"instances": 0}
    assert "models.iris.instances" in loaded.origins


def test_a_model_may_be_named_without_saying_anything(toml: Path) -> None:
    toml.write_text('[models.iris]\n[models."a.b"]\n')
    assert load_config(toml, {}, {}).config.models == {
        "iris": ModelConfig(),
        "a.b": ModelConfig(),
    }


def test_options_of_runtimes_are_free_and_merged_by_key(toml: Path) -> None:
    toml.write_text("[defaults.runtime_options]\nlevel = 3\nnested = {a = [1, 2]}\n")
    env = {
        "HEADRACE_DEFAULTS__RUNTIME_OPTIONS__LEVEL": "9",
        "HEADRACE_DEFAULTS__RUNTIME_OPTIONS__HINT": "latency",
    }
    options = load_config(toml, env, {}).config.defaults.runtime_options
    assert options == {"level": 9, "nested": {"a": [1, 2]}, "hint": "latency"}


@pytest.mark.parametrize("name", ["all-minilm", "all.minilm", "All_MiniLM"])
def test_the_environment_finds_models_by_a_name_a_shell_can_write(toml: Path, name: str) -> None:
    toml.write_text(f'[models."{name}"]\nthreads = 1\n')
    env = {"HEADRACE_MODELS__ALL_MINILM__INSTANCES": "2"}
    assert load_config(toml, env, {}).config.models == {name: ModelConfig(threads=1, instances=2)}


@pytest.mark.parametrize(
    ("text", "expected"), [("true", True), ("1", True), ("False", False), ("0", False)]
)
def test_the_environment_spells_truth_in_the_usual_ways(text: str, expected: bool) -> None:
    loaded = load_config(None, {"HEADRACE_DEFAULTS__ALLOW_NONFINITE": text}, {})
    assert loaded.config.defaults.allow_nonfinite is expected


def test_a_number_for_a_string_stays_text() -> None:
    assert (
        load_config(None, {"HEADRACE_DEFAULTS__VERSIONS": "1"}, {}).config.defaults.versions == "1"
    )


def test_an_empty_variable_counts_as_not_set(toml: Path) -> None:
    toml.write_text('cache_dir = "here"\n')
    env = {"HEADRACE_CACHE_DIR": "", "HEADRACE_SERVER__PORT": ""}
    assert load_config(toml, env, {}).config == Config(cache_dir="here")


def test_what_kubernetes_puts_beside_a_service_of_our_name_is_not_ours() -> None:
    env = {
        "HEADRACE_SERVICE_HOST": "10.0.0.1",
        "HEADRACE_SERVICE_PORT": "8000",
        "HEADRACE_SERVICE_PORT_HTTP": "8000",
        "HEADRACE_PORT": "tcp://10.0.0.1:8000",
        "HEADRACE_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "HEADRACE_PORT_8000_TCP_PROTO": "tcp",
        "HEADRACE_PORT_8000_TCP_PORT": "8000",
        "HEADRACE_PORT_8000_TCP_ADDR": "10.0.0.1",
        "HEADRACE_SERVER_SERVICE_HOST": "10.0.0.2",
        "HEADRACE_SERVER_PORT": "tcp://10.0.0.2:80",
    }
    assert load_config(None, env, {}).config == Config()


def test_the_command_lines_own_variables_are_not_settings() -> None:
    env = {"HEADRACE_DEBUG": "1", "HEADRACE_CONFIG": "elsewhere.toml"}
    assert load_config(None, env, {}).config == Config()


def test_a_flag_may_have_a_spelling_of_its_own() -> None:
    loaded = load_config(
        None,
        {},
        {"server.limits.max_body_bytes": 5},
        flag_names={"server.limits.max_body_bytes": "-b"},
    )
    assert loaded.origins == {"server.limits.max_body_bytes": "-b"}


def test_a_table_may_come_in_pieces_from_several_sources(toml: Path) -> None:
    toml.write_text('[server.tls]\ncertificate = "chain.pem"\n')
    loaded = load_config(toml, {"HEADRACE_SERVER__TLS__KEY": "key.pem"}, {})
    assert loaded.config.server.tls == TlsConfig(certificate="chain.pem", key="key.pem")


# --- what is wrong


@pytest.mark.parametrize(
    ("env", "field", "hint"),
    [
        ({"HEADRACE_SERVER__PROT": "1"}, "server.prot", "'server.port'"),
        ({"HEADRACE_MAX_BODY_BYTES": "1"}, "max_body_bytes", "'server.limits.max_body_bytes'"),
        ({"HEADRACE_MODELS__IRIS__INSTANCE": "1"}, "models.iris.instance", "iris.instances'"),
        ({"HEADRACE_ZZZ": "1"}, "zzz", "known here: server, defaults, models, tenants, cache_dir"),
        ({"HEADRACE_SERVER__PORT__X": "1"}, "server.port.x", ""),
    ],
)
def test_an_unknown_setting_is_met_with_the_nearest_known(
    env: Mapping[str, str], field: str, hint: str
) -> None:
    error = refusal(None, env, {})
    assert next(iter(env)) in error.message
    assert error.details["field"] == field
    assert hint in error.hint


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("server.port", 65536, "a whole number at least 0 and at most 65535"),
        ("server.port", True, "a whole number"),
        ("server.port", [1], "a whole number"),
        ("server.host", 1, "a string"),
        ("server.drain_timeout_s", 0, "a number above 0 and at most 86400"),
        ("server.drain_timeout_s", float("nan"), "a number above 0"),
        ("server.drain_timeout_s", float("inf"), "a number above 0"),
        ("defaults.allow_nonfinite", "no", "true or false"),
        ("server.limits", 5, "a table with max_body_bytes"),
        ("server.grpc_server", "other", 'expected "grpcio" or "headrace"'),
        ("server.grpc_port", "x", "expected a whole number at least 0 and at most 65535"),
        ("server.trace.level", ["ALL"], 'a list, each of "OFF" or "TENSORS" or "TIMESTAMPS"'),
        ("server.load_models", 5, "a list, each of a string"),
        ("models", 5, "a table"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(
    field: str, value: object, expected: str
) -> None:
    error = refusal(None, {}, {field: value})
    assert error.details["field"] == field
    assert error.message.startswith(f"--{field.rpartition('.')[2].replace('_', '-')}: {field}: ")
    assert expected in error.message
    assert "got " in error.message


def test_a_wrong_value_in_a_file_is_named_with_its_line(toml: Path) -> None:
    toml.write_text(
        '# comment\ncache_dir = """\n[server]\nport = 3\n"""\n\n[server]\n"port" = "eighty"\n'
        "limits = { max_headers = 0 }\n"
    )
    assert f"{toml}:8: server.port: expected a whole number" in refusal(toml, {}, {}).message
    toml.write_text("[server]\nlimits = { max_headers = 0 }\n")
    assert refusal(toml, {}, {}).message.startswith(f"{toml}:2: server.limits.max_headers: ")
    toml.write_text("[models.'a b']\nfoo.bar = 1\n")
    assert refusal(toml, {}, {}).message.startswith(
        f"{toml}:2: there is no setting 'models.a b.foo"
    )


def test_half_a_table_names_the_other_half() -> None:
    error = refusal(None, {"HEADRACE_SERVER__TLS__KEY": "k"}, {})
    assert "HEADRACE_SERVER__TLS__KEY: server.tls.certificate is needed too" in error.message
    assert error.hint.startswith("[server.tls] needs certificate and key (on the command line --")


@pytest.mark.parametrize("content", [b"port =", b"\xff\xfe", b"a = 1\na = 2", b"[" * 100_000])
def test_a_file_that_is_not_toml_is_refused(toml: Path, content: bytes) -> None:
    toml.write_bytes(content)
    assert str(toml) in refusal(toml, {}, {}).message


def test_a_file_that_cannot_be_read_is_refused(toml: Path) -> None:
    assert "No such file" in refusal(toml, {}, {}).message
    assert "directory" in refusal(toml.parent, {}, {}).message


def test_a_file_that_is_far_too_large_is_refused(toml: Path) -> None:
    toml.write_bytes(b"#" * (4 * 1024 * 1024 + 1))
    assert "larger" in refusal(toml, {}, {}).message


_words = st.sampled_from(
    [
        "server",
        "port",
        "models",
        "defaults",
        "tls",
        "key",
        "limits",
        "host",
        "runtime_options",
        "a",
        "",
    ]
)
_values = st.recursive(
    st.integers() | st.floats() | st.booleans() | st.text(max_size=5) | st.just({}),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_words, inner, max_size=2),
    max_leaves=6,
)


def taken(file: Path | None, env: Mapping[str, str], flags: Mapping[str, Any]) -> bool:
    """Loads it, or is refused by an error of ours; anything else fails the test."""
    try:
        loaded = load_config(file, env, flags)
    except ConfigError:
        return False
    assert msgspec.convert(loaded.settings, Config) == loaded.config
    return len(explain(loaded)) > 0


@given(flags=st.dictionaries(st.lists(_words, min_size=1, max_size=4).map(".".join), _values))
def test_whatever_is_said_is_taken_or_refused(flags: dict[str, Any]) -> None:
    taken(None, {}, flags)


@given(
    env=st.dictionaries(
        st.lists(_words, min_size=1, max_size=4).map(lambda w: "HEADRACE_" + "__".join(w).upper()),
        st.text(max_size=12),
    )
)
def test_whatever_the_environment_holds_is_taken_or_refused(env: dict[str, str]) -> None:
    taken(None, env, {})


@given(text=st.text(alphabet='[]{}.="\n #a1server', max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_holds_is_taken_or_refused(toml: Path, text: str) -> None:
    toml.write_text(text)
    taken(toml, {}, {})


# --- showing it


def test_the_table_shows_every_field_its_value_and_its_source(toml: Path) -> None:
    toml.write_text("[models.iris]\ninstances = 2\n[models.iris.runtime_options]\na = {b = 1}\n")
    shown = explain(load_config(toml, {}, {"server.port": 0}))
    rows = [line.split() for line in shown.splitlines()]
    assert rows[0] == ["field", "value", "from"]
    assert ["server.port", "0", "--port"] in rows
    assert ["server.host", '"127.0.0.1"', "default"] in rows
    assert ["models.iris.instances", "2", f"{toml}:2"] in rows
    assert ["models.iris.runtime_options.a.b", "1", f"{toml}:4"] in rows
    assert not any(row[0] == "models.iris.threads" for row in rows)


def test_the_file_is_the_one_that_was_named_else_the_one_that_is_there(toml: Path) -> None:
    assert config_file(None, {}, toml.parent) is None
    toml.write_text("")
    assert config_file(None, {}, toml.parent) == toml
    assert config_file(None, {"HEADRACE_CONFIG": "e.toml"}, toml.parent) == Path("e.toml")
    assert config_file("f.toml", {"HEADRACE_CONFIG": "e.toml"}, toml.parent) == Path("f.toml")


def test_the_cache_is_where_it_was_said_or_where_the_desktop_keeps_caches() -> None:
    env = {"XDG_CACHE_HOME": "/var/x"}
    assert cache_folder(Config(cache_dir="/a"), env) == Path("/a")
    assert cache_folder(Config(), env) == Path("/var/x/headrace")
    assert cache_folder(Config(), {}) == Path.home() / ".cache" / "headrace"


def test_minimum_shares_cannot_be_more_than_all_there_is(toml: Path) -> None:
    toml.write_text("[models.a]\nmin_share = 0.7\n[models.b]\nmin_share = 0.4\n")
    error = refusal(toml, {}, {})
    assert error.message.endswith("may be 1 together, not more: a 0.7, b 0.4")


def test_a_host_that_is_none_is_not_told_of_times(toml: Path) -> None:
    toml.write_text('[server]\nallowed_hosts = ["https://models.example.com"]\n')
    error = refusal(toml, {}, {})
    assert "server.allowed_hosts" in error.message
    assert "text that matches" in error.message


@pytest.mark.parametrize("text", ["50", "fast", "0ms", "-5ms", "5 minutes", ""])
def test_a_time_that_is_none_is_named_with_what_was_expected(toml: Path, text: str) -> None:
    toml.write_text(f'[models.a]\nslo = {{ p99 = "{text}" }}\n')
    if not text:
        assert load_config(toml, {}, {}).config.models["a"].slo.target_ns == 0
        return
    error = refusal(toml, {}, {})
    assert f"{toml}:2" in error.message
    assert 'expected a time above 0 such as "500us", "50ms" or "1.5s"' in error.message


@pytest.mark.parametrize("text", ["4", "4 gigabytes", "0GiB", "-1MiB"])
def test_a_size_that_is_none_is_named_with_what_was_expected(toml: Path, text: str) -> None:
    toml.write_text(f'[server]\nmemory_budget = "{text}"\n')
    error = refusal(toml, {}, {})
    assert 'expected a size above 0 such as "512MiB" or "4GiB"' in error.message


def test_passwords_are_not_shown():
    env = {"HEADRACE_SERVER__SHARED_CACHE__URL": "redis://user:hunter2@h:6379/0?password=hunter2"}
    assert "hunter2" not in explain(load_config(None, env, {}))


def test_callers_see_no_folders_of_the_server(tmp_path):
    told = f"cannot read {tmp_path}/deep/model.onnx: no such file; use /v2/models/m/infer"
    shown = without_folders(told)
    assert shown == "cannot read model.onnx: no such file; use /v2/models/m/infer"
