import importlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from qwen_operator.api.claims import NameRights
from qwen_operator.gateway.router import build_command, control_plane_key, main
from qwen_operator.gateway.settings import AgentSettings, RouterSettings, SettingsError


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_smg_itself_understands_the_command_line() -> None:
    settings = RouterSettings.from_env(
        {
            "QWEN_GATEWAY_RUN_DIR": "/r",
            "QWEN_GATEWAY_ROUTER_PORT": "8009",
            "QWEN_GATEWAY_METRICS_PORT": "9091",
            "QWEN_GATEWAY_MAX_BODY_BYTES": "4096",
            "QWEN_GATEWAY_MAX_CONCURRENT_REQUESTS": "7",
            "QWEN_GATEWAY_QUEUE_SIZE": "8",
            "QWEN_GATEWAY_QUEUE_TIMEOUT_SECONDS": "9",
            "QWEN_GATEWAY_REQUEST_TIMEOUT_SECONDS": "10",
            "QWEN_GATEWAY_SHUTDOWN_GRACE_SECONDS": "11",
            "QWEN_LOG_LEVEL": "warning",
        }
    )
    command = build_command(settings, "CP")
    assert command[0] == "launch"
    args = importlib.import_module("smg.launch_router").parse_router_args(command[1:])
    assert args.enable_igw
    assert args.discovery_file == "/r/workers.json"
    assert (args.host, args.port) == ("127.0.0.1", 8009)
    assert (args.prometheus_host, args.prometheus_port) == ("0.0.0.0", 9091)
    assert (args.max_payload_size, args.max_concurrent_requests) == (4096, 7)
    assert (args.queue_size, args.queue_timeout_secs) == (8, 9)
    assert (args.request_timeout_secs, args.shutdown_grace_period_secs) == (10, 11)
    assert args.log_level == "warn"
    assert args.tenant_api_keys == []
    assert args.trust_tenant_header
    assert (args.history_backend, args.max_background_responses) == ("none", 0)
    assert [(key[0], key[2]) for key in args.control_plane_api_keys] == [("agent", "CP")]


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (
            {"QWEN_GATEWAY_ROUTER_PORT": "http"},
            "QWEN_GATEWAY_ROUTER_PORT is 'http'; it must be a whole number from 1 to 65535",
        ),
        (
            {"QWEN_GATEWAY_ROUTER_PORT": "0"},
            "QWEN_GATEWAY_ROUTER_PORT is '0'; it must be a whole number from 1 to 65535",
        ),
        ({"QWEN_GATEWAY_QUEUE_SIZE": "-1"}, "QWEN_GATEWAY_QUEUE_SIZE is '-1'"),
        ({"QWEN_LOG_LEVEL": "trace"}, "QWEN_LOG_LEVEL is 'trace'; it must be one of debug, info, warning, error"),
    ],
)
def test_router_settings_that_are_refused(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        RouterSettings.from_env(environ)
    assert str(caught.value).startswith(sentence)


def test_agent_settings() -> None:
    settings = AgentSettings.from_env(
        {"QWEN_WATCH_NAMESPACES": " a, b,", "QWEN_GATEWAY_ROUTER_URL": "http://127.0.0.1:8000/"}
    )
    assert settings.namespaces == ("a", "b")
    assert settings.router_url == "http://127.0.0.1:8000"
    assert AgentSettings.from_env({}).namespaces == ()
    with pytest.raises(SettingsError, match="QWEN_GATEWAY_ROUTER_URL is 'router'"):
        AgentSettings.from_env({"QWEN_GATEWAY_ROUTER_URL": "router"})
    with pytest.raises(SettingsError, match="QWEN_AGENT_PORT is '99999'"):
        AgentSettings.from_env({"QWEN_AGENT_PORT": "99999"})
    rights = AgentSettings.from_env({"QWEN_SERVED_NAMES": '{"team-a":["team-a-*"]}'}).name_rights
    assert rights == NameRights({"team-a": ("team-a-*",)})
    for wrong in ("{", "[]", '{"a":"x"}', "[" * 5000):
        with pytest.raises(SettingsError, match="QWEN_SERVED_NAMES must be a JSON object"):
            AgentSettings.from_env({"QWEN_SERVED_NAMES": wrong})


def test_the_control_plane_key_is_random_private_and_kept(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "control-plane-key.draft").write_text("half")
    key = control_plane_key(tmp_path)
    assert control_plane_key(tmp_path) == key == (tmp_path / "control-plane-key").read_text()
    assert control_plane_key(other) != key
    assert len(key) >= 32
    assert (tmp_path / "control-plane-key").stat().st_mode & 0o777 == 0o600


def environ_of(folder: Path) -> dict[str, str]:
    return {"QWEN_GATEWAY_RUN_DIR": str(folder)}


def test_the_router_waits_for_the_worker_file_and_locks_its_control_plane(tmp_path: Path) -> None:
    launched: list[Sequence[str]] = []

    def sleep(_seconds: float) -> None:
        assert not launched
        (tmp_path / "workers.json").write_text("")

    assert main(environ_of(tmp_path), launch=launched.append, sleep=sleep) == 0
    assert not [flag for flag in launched[0] if flag.startswith("--tenant-api-key")]
    assert [flag for flag in launched[0] if flag.startswith("--control-plane-api-keys=agent:agent:admin:")]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_router_that_still_waits_ends_at_sigterm(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(environ_of(tmp_path), sleep=lambda _seconds: signal.raise_signal(signal.SIGTERM))
    assert caught.value.code == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [({"QWEN_LOG_LEVEL": "x"}, "QWEN_LOG_LEVEL"), ({"QWEN_GATEWAY_RUN_DIR": "/absent/run"}, "/absent/run")],
)
def test_a_router_that_cannot_start_says_why_in_one_line(
    change: dict[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main({**environ_of(tmp_path), **change}) == 1
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
