"""Stands in for the engines of simulated pods: their addresses answer, and /metrics says what a test wants.

kwok says of a pod that it runs, but nothing listens at its address. While an `Exporter` runs, the test bed's network
takes the addresses of SIMULATED_METRICS_RANGE for its own, and one program answers at all of them with SGLang's metric
names. Pods get these addresses on nodes of `Cluster.own_nodes(..., answering=True)`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.testbed.layout import SIMULATED_METRICS_RANGE
from tests.testbed.sandbox import Sandbox

PORT = 8000
_STARTED = time.time()


class Exporter:
    """What the simulated engines say. Each `say` replaces what was said before for that model."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loads: dict[str, Mapping[str, int]] = {}
        self._refused = False
        self._flooded: tuple[str, ...] = ()
        self._write()

    def say(self, model: str, *, running: int = 0, queued: int = 0, tokens: int = 0, capacity: int = 100_000) -> None:
        """Every simulated engine says these numbers of the served model `model`."""
        self._loads[model] = {"running": running, "queued": queued, "tokens": tokens, "capacity": capacity}
        self._write()

    def forget(self, model: str) -> None:
        """No engine knows this model any more."""
        self._loads.pop(model, None)
        self._write()

    def refuse(self, *, refused: bool = True) -> None:
        """Every simulated engine answers 401, until it is told otherwise."""
        self._refused = refused
        self._write()

    def flood(self, *addresses: str) -> None:
        """The simulated engines at these addresses, and no others, answer with the hostile page."""
        self._flooded = addresses
        self._write()

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({"loads": self._loads, "refused": self._refused, "flooded": self._flooded}))
        new.replace(self._path)


@contextmanager
def exporting(sandbox: Sandbox, folder: Path) -> Iterator[Exporter]:
    """An exporter, until the block ends."""
    path = folder / "simulated-loads.json"
    exporter = Exporter(path)
    route = ["ip", "route", "replace", "local", SIMULATED_METRICS_RANGE, "dev", "lo"]
    sandbox.call(route)
    program = sandbox.enter([sys.executable, "-m", "tests.testbed.exporter", str(path)])
    # It ends when the pipe is closed, also when this process is killed. Ctrl-C does not reach a session of its own.
    process = subprocess.Popen(program, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield exporter
    finally:
        process.communicate(timeout=10)
        sandbox.call([*route[:2], "delete", *route[3:]])


def page(loads: Mapping[str, Mapping[str, int]]) -> str:
    """A page in the form of SGLang 0.5.23, with a series for each model."""
    lines = ["# TYPE sglang:scheduler_idle_seconds_total counter"]
    for model, load in loads.items():
        labels = f'{{engine_type="unified",model_name="{model}",pp_rank="0",tp_rank="0"}}'
        lines.append(f"sglang:scheduler_idle_seconds_total{labels} {time.time() - _STARTED:.3f}")
        for name, key in (
            ("num_running_reqs", "running"),
            ("num_queue_reqs", "queued"),
            ("num_used_tokens", "tokens"),
            ("max_total_num_tokens", "capacity"),
        ):
            lines += [f"# TYPE sglang:{name} gauge", f"sglang:{name}{labels} {float(load[key])}"]
    return "\n".join(lines) + "\n"


def hostile_page() -> str:
    """4 MB in which one series has all the labels. A parser that takes quadratic time needs a minute for it."""
    return "sglang:num_running_reqs{" + ",".join(f'l{number}="v"' for number in range(345_000)) + "} 1\n"


def _serve(path: Path) -> None:
    """Serves until standard input ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state = json.loads(path.read_text())
            flooded = self.connection.getsockname()[0] in state["flooded"]
            body = (hostile_page() if flooded else page(state["loads"])).encode()
            self.send_response(401 if state["refused"] else 200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            # Who asked may have given up by now.
            with suppress(ConnectionError):
                self.end_headers()
                self.wfile.write(body)
            # The reader of such a page closes the connection in the middle of it.
            self.close_connection = self.close_connection or flooded

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("0.0.0.0", PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
