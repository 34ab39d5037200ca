"""A registry on one real node that takes its time: a slow pull, with the kubelet's and containerd's own words.

containerd asks `localhost` over plain HTTP, and each real node has a loopback of its own. The registry knows one image,
by any name and tag: one that the node has the content of. So what takes the time is only what a test wants.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

PORT = 80


@contextmanager
def serving(enter: Sequence[str], manifest: Path, seconds: float) -> Iterator[None]:
    """`enter` is the beginning of a command that runs on the node. Each answer takes `seconds`."""
    argv = [*enter, sys.executable, "-m", "tests.testbed.registry", str(manifest), str(seconds)]
    # It ends when the pipe is closed, also when this process is killed. Ctrl-C does not reach a session of its own.
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        process.communicate(timeout=10)


def _serve(manifest: Path, seconds: float) -> None:
    """Serves until standard input ends."""
    media_type = json.loads(manifest.read_text())["mediaType"]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self.wfile.write(self._answer())

        def _answer(self) -> bytes:
            if "/manifests/" in self.path:
                time.sleep(seconds)
            body = manifest.read_bytes() if "/manifests/" in self.path else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Content-Digest", f"sha256:{manifest.name}")
            self.end_headers()
            return body

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), float(sys.argv[2]))
