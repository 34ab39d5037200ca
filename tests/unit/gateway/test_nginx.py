"""The configuration of nginx: nginx accepts it, and its numbers are those of the settings and of the Lua files."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_operator.gateway.nginx import LUA, SMALL_BODY_BYTES, Files, render, render_relay
from qwen_operator.gateway.settings import ProxySettings
from tests.testbed.packages import PROXY, ensure_packages


@pytest.mark.parametrize("change", [{}, {"QWEN_GATEWAY_SHUTDOWN_GRACE_SECONDS": "0", "QWEN_GATEWAY_PORT": "18123"}])
@pytest.mark.parametrize("made", [render, render_relay])
def test_nginx_accepts_it(made: Callable[[ProxySettings], str], change: dict[str, str], tmp_path: Path) -> None:
    ensure_packages(PROXY)
    settings = ProxySettings.from_env({"QWEN_GATEWAY_PROXY_DIR": str(tmp_path), **change})
    files = Files(tmp_path)
    files.bodies.mkdir()
    files.configuration.write_text(made(settings))

    done = subprocess.run(
        ["nginx", "-t", "-c", str(files.configuration), "-e", "stderr"], capture_output=True, text=True, check=False
    )

    assert "test is successful" in done.stderr, done.stderr
    assert "warn" not in done.stderr


def test_the_settings_reach_it() -> None:
    text = render(
        ProxySettings.from_env(
            {
                "QWEN_GATEWAY_PROXY_DIR": "/p",
                "QWEN_GATEWAY_RUN_DIR": "/r",
                "QWEN_GATEWAY_PORT": "1234",
                "QWEN_GATEWAY_PROXY_METRICS_PORT": "1235",
                "QWEN_GATEWAY_ROUTER_PORT": "1236",
                "QWEN_GATEWAY_MAX_BODY_BYTES": "4096",
                "QWEN_GATEWAY_REQUEST_TIMEOUT_SECONDS": "77",
                "QWEN_GATEWAY_SHUTDOWN_GRACE_SECONDS": "88",
            }
        )
    )
    for line in (
        "listen 0.0.0.0:1234 backlog=1024;",
        "listen 0.0.0.0:1235;",
        "server 127.0.0.1:1236;",
        "client_max_body_size 4096;",
        "proxy_read_timeout 77s;",
        "keepalive_timeout 4100s;",
        "worker_shutdown_timeout 88s;",
        'settings = "/p/settings.json",',
    ):
        assert line in text


def test_nginx_and_lua_agree_on_what_a_small_body_is() -> None:
    (number,) = re.findall(r"limits.SMALL_BYTES = (\d+)", (LUA / "qwen/limits.lua").read_text())
    assert int(number) == SMALL_BODY_BYTES
