"""Downloads a file from loopback with curl and with `qwen-operator fetch`, and compares time and memory.

    python -m bench.fetch --megabytes 2000 --rounds 5
    python -m bench.fetch --megabytes 2000 --rounds 5 --tls

They take turns, so that other work on the machine meets both. Both write to the same folder and wait until the disk has
the file. The fetch also compares the sha256, keeps a journal and publishes the model. The hub is a small server that
sends files with sendfile, so that it is not the limit. With --tls it cannot: it encrypts, which costs as much.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.unit.fetch.hub import COMMIT, REPOSITORY, blob
from tests.unit.fetch.tls import certificate
from tests.unit.runtime.checkpoint import CONFIG, header

SHARD = "model.safetensors"


def made(folder: Path, megabytes: int) -> dict[str, Any]:
    """A model with one shard of random bytes. Returns the hub's list of its files."""
    size, digest = megabytes * 10**6 // 2 * 2, hashlib.sha256()
    with (folder / SHARD).open("wb") as out:
        head = header({"model.embed_tokens.weight": size})
        out.write(head)
        digest.update(head)
        for first in range(0, size, 1 << 24):
            piece = os.urandom(min(1 << 24, size - first))
            out.write(piece)
            digest.update(piece)
    small = {"config.json": json.dumps(CONFIG).encode(), "tokenizer.json": b"{}"}
    siblings: list[dict[str, Any]] = []
    for name, content in small.items():
        (folder / name).write_bytes(content)
        siblings.append({"rfilename": name, "size": len(content), "blobId": blob(content)})
    total = (folder / SHARD).stat().st_size
    siblings.append({"rfilename": SHARD, "size": total, "lfs": {"sha256": digest.hexdigest(), "size": total}})
    return {"sha": COMMIT, "siblings": siblings}


@contextmanager
def hub(folder: Path, listing: dict[str, Any], tls: ssl.SSLContext | None) -> Iterator[str]:
    """A hub that gives the files of the folder; its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path.startswith("/api/"):
                self.head(200, len(body))
                self.wfile.write(body)
                return
            with (folder / Path(self.path).name).open("rb") as file:
                first, end = 0, os.fstat(file.fileno()).st_size
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if wanted:
                    first, end = int(wanted[1]), int(wanted[2]) + 1
                self.head(206 if wanted else 200, end - first)
                self.wfile.flush()
                while first < end:
                    if tls is None:
                        first += os.sendfile(self.connection.fileno(), file.fileno(), first, min(end - first, 1 << 24))
                    else:
                        piece = os.pread(file.fileno(), min(end - first, 1 << 18), first)
                        self.connection.sendall(piece)
                        first += len(piece)

        def head(self, status: int, length: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()

    body = json.dumps(listing).encode()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds by the clock, seconds of CPU, and peak memory in MiB. The memory is at least that of this program."""

    seconds: float
    cpu: float
    mebibytes: int

    def without(self, other: Cost) -> Cost:
        return Cost(self.seconds - other.seconds, self.cpu - other.cpu, self.mebibytes)

    def line(self, megabytes: int) -> str:
        return f"{megabytes / self.seconds:5.0f} MB/s, {self.cpu * 1000 / megabytes:.2f} s CPU per GB"


def timed(command: list[str]) -> Cost:
    """What a command costs. Raises CalledProcessError."""
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(time.monotonic() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss >> 10)


def by_curl(address: str, folder: Path) -> Cost:
    """curl, and then the wait for the disk."""
    target = folder / "curl"
    trusted = os.environ.get("SSL_CERT_FILE")
    options = ["--cacert", trusted] if trusted else []
    cost = timed(["curl", "-sf", *options, "-o", str(target), f"{address}/{REPOSITORY}/resolve/{COMMIT}/{SHARD}"])
    begun = time.monotonic()
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    target.unlink()
    return replace(cost, seconds=cost.seconds + time.monotonic() - begun)


def by_fetch(address: str, folder: Path, megabytes: int) -> Cost:
    """The whole program as the container runs it, without the start of Python."""
    cache, gib = folder / "cache", max(1, megabytes // 500)
    options = ["--hub=hf", f"--hub-url={address}", f"--repository={REPOSITORY}", f"--commit={COMMIT}", "--port=0"]
    code = "import sys; from qwen_operator.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "fetch", *options, f"--cache={cache}", f"--size-gib={gib}"]
    cost = timed(command)
    # The second time everything is there: what is left is the start of Python and the look into the cache.
    start = timed(command)
    shutil.rmtree(cache)
    return cost.without(start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the downloads go; default: a temporary folder")
    arguments = parser.parse_args()
    ratios: list[float] = []
    peak = 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        source, target = Path(name) / "source", Path(name) / "target"
        source.mkdir()
        target.mkdir()
        context = None
        if arguments.tls:
            context, trusted = certificate(Path(name))
            os.environ["SSL_CERT_FILE"] = str(trusted)
        with hub(source, made(source, arguments.megabytes), context) as address:
            for _ in range(arguments.rounds):
                size = arguments.megabytes
                curl, fetch = by_curl(address, target), by_fetch(address, target, size)
                ratios.append(curl.seconds / fetch.seconds)
                print(f"curl {curl.line(size)}; fetch {fetch.line(size)}; ratio {ratios[-1]:.2f}", flush=True)
                peak = max(peak, fetch.mebibytes)
    print(f"median ratio {statistics.median(ratios):.2f}; peak memory of the fetch at most {peak} MiB")


if __name__ == "__main__":
    main()
