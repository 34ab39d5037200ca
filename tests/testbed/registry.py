"""A registry on one real node, which containerd finds at `localhost` over plain HTTP.

Each real node has a loopback of its own. The registry serves what lies beside a manifest in a folder of blobs. Any name
with any tag is the image of that manifest. It can take its time, so that a pull is slow, with the kubelet's and
containerd's own words.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from tests.testbed.cache import StepFailed

PORT = 80
USER, PASSWORD = "puller", "of-the-test-bed"
"""What a client needs for names that begin with `private/`."""
_BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
_PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs)/((?P<tag>[\w.-]+)|sha256:(?P<digest>[0-9a-f]{64}))")


@contextmanager
def serving(enter: Sequence[str], manifest: Path, seconds: float = 0) -> Iterator[None]:
    """Serves `manifest`, whose name is its SHA-256, and the blobs in its folder until the block ends.

    `enter` is the beginning of a command that runs on the node. Each answer with a manifest takes `seconds`.
    """
    argv = [*enter, sys.executable, "-m", "tests.testbed.registry", str(manifest), str(seconds)]
    # It ends when the pipe is closed, also when this process is killed. Ctrl-C does not reach a session of its own.
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            raise StepFailed("the registry on the node did not start; its own words are above")
        yield
    finally:
        process.communicate(timeout=10)


def _serve(manifest: Path, seconds: float) -> None:
    """Serves until standard input ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self.wfile.write(self._answer())

        def _answer(self) -> bytes:
            asked = _PATH.fullmatch(self.path)
            if asked and asked["name"].startswith("private/") and self.headers["Authorization"] != _BASIC:
                return self._headers(401, b"", {"WWW-Authenticate": 'Basic realm="testbed"'})
            file = manifest.with_name(asked["digest"] or manifest.name) if asked else None
            if asked is None or file is None or not file.exists():
                return self._headers(404, b"", {})
            body, media_type = file.read_bytes(), "application/octet-stream"
            if asked["kind"] == "manifests":
                time.sleep(seconds)
                media_type = json.loads(body)["mediaType"]
            return self._headers(
                200, body, {"Content-Type": media_type, "Docker-Content-Digest": f"sha256:{file.name}"}
            )

        def _headers(self, code: int, body: bytes, more: dict[str, str]) -> bytes:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            return body

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), float(sys.argv[2]))
