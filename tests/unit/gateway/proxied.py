"""The gateway as its pod runs it: the real nginx before the real smg, on loopback, with stand-in engines."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.testbed.packages import PROXY, ensure_packages
from tests.unit.gateway.engines import Received, recorded_engine

OPEN, CLOSED = "127.77.1.5", "127.77.1.6"
KEYS = {"all": "key-all\n", "some": "key-some\nkey-some-new\n", "few": "key-few\n"}
TENANTS: dict[str, Any] = {
    "defaults": {},
    "tenants": {"some": {"models": ["open*"]}, "few": {"models": ["open"], "concurrentRequests": 2}},
}
CODE = "import os; from qwen_operator.gateway.{} import main; raise SystemExit(main(os.environ))"
PATIENCE_SECONDS = 20


@dataclass(slots=True)
class Pod:
    """A running gateway without its agent. `received` has what each engine got, by its model."""

    folder: Path
    url: str
    metrics_url: str
    environ: Mapping[str, str]
    received: dict[str, list[Received]] = field(default_factory=dict)
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def client(self, key: str | None = "key-all", **headers: str) -> httpx.Client:
        bearer = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers={**bearer, **headers}, timeout=30, verify=False)

    def chat(self, model: str, key: str | None = "key-all", **body: Any) -> httpx.Response:
        message = {"role": "user", "content": "0"}
        with self.client(key) as client:
            return client.post("/v1/chat/completions", json={"model": model, "messages": [message], **body})

    def write_keys(self, keys: Mapping[str, str]) -> None:
        folder = self.folder / "keys"
        for path in folder.iterdir():
            if path.name not in keys:
                path.unlink()
        for tenant, text in keys.items():
            (folder / tenant).write_text(text)

    def write_tenants(self, tenants: Mapping[str, Any]) -> None:
        (self.folder / "tenants.json").write_text(json.dumps(tenants))

    def metrics(self) -> dict[str, float]:
        """Series with its labels -> value."""
        lines = httpx.get(f"{self.metrics_url}/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def log(self, program: str) -> str:
        return (self.folder / f"{program}.log").read_text()

    def start(self, program: str) -> None:
        with (self.folder / f"{program}.log").open("ab") as log:
            self.processes[program] = subprocess.Popen(
                [sys.executable, "-c", CODE.format(program)], env=self.environ, stdout=log, stderr=log
            )

    def becomes_ready(self) -> None:
        def serves(model: str) -> bool:
            try:
                return self.chat(model).status_code == 200
            except httpx.TransportError:
                return False

        until(lambda: serves("open") and serves("closed"), "the gateway serves both models")


def until(condition: Any, awaited: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not after {PATIENCE_SECONDS} s: {awaited}"
        time.sleep(0.05)


def free_ports(number: int) -> list[int]:
    """Different ports of the loopback interface. Asked for one by one, the same port may come twice."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [one.getsockname()[1] for one in sockets]


def workers(port: int) -> dict[str, Any]:
    """The file that the agent writes."""
    entries = [("open", OPEN), ("closed", CLOSED)]
    return {
        "version": 1,
        "workers": [
            {"id": f"id-{model}", "url": f"http://{address}:{port}", "worker_type": "regular", "model_id": model}
            for model, address in entries
        ],
    }


@contextmanager
def gateway(folder: Path, **environ: str) -> Iterator[Pod]:
    """Yields when both models answer, unless the proxy is to ask for no key of tenant `all`."""
    ensure_packages(PROXY)
    for name in ("keys", "proxy", "run"):
        (folder / name).mkdir()
    port, metrics, router, router_metrics = free_ports(4)
    settings = {
        "QWEN_GATEWAY_RUN_DIR": str(folder / "run"),
        "QWEN_GATEWAY_PROXY_DIR": str(folder / "proxy"),
        "QWEN_GATEWAY_KEYS_DIR": str(folder / "keys"),
        "QWEN_GATEWAY_TENANTS_FILE": str(folder / "tenants.json"),
        "QWEN_GATEWAY_HOST": "127.0.0.1",
        "QWEN_GATEWAY_PORT": str(port),
        "QWEN_GATEWAY_PROXY_METRICS_PORT": str(metrics),
        "QWEN_GATEWAY_ROUTER_PORT": str(router),
        "QWEN_GATEWAY_METRICS_PORT": str(router_metrics),
        **environ,
    }
    pod = Pod(folder, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics}", {**os.environ, **settings})
    pod.write_keys(KEYS)
    pod.write_tenants(TENANTS)
    with ExitStack() as stack:
        engine_port, pod.received["open"] = stack.enter_context(recorded_engine(OPEN))
        _, pod.received["closed"] = stack.enter_context(recorded_engine(CLOSED, engine_port))
        (folder / "run/workers.json").write_text(json.dumps(workers(engine_port)))
        stack.callback(_end, pod)
        pod.start("router")
        pod.start("proxy")
        pod.becomes_ready()
        for received in pod.received.values():
            received.clear()
        yield pod


def _end(pod: Pod) -> None:
    """smg's graceful end takes 5 s, so it is killed; nginx is not, because it is a child of its program."""
    if proxy := pod.processes.get("proxy"):
        proxy.send_signal(signal.SIGTERM)
        proxy.wait(30)
    if router := pod.processes.get("router"):
        router.kill()
        router.wait()
