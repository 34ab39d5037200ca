"""Downloads a file from loopback with curl and with `qwen-operator fetch`, and compares time and memory.

    python -m bench.fetch --megabytes 2000 --rounds 3

Both write to the same folder and wait until the disk has the file. The fetch also compares the sha256, keeps a journal
and publishes the model. The hub is a small server that sends files with sendfile, so that it is not the limit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.unit.fetch.hub import COMMIT, REPOSITORY, blob
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
def hub(folder: Path, listing: dict[str, Any]) -> Iterator[str]:
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
                    first += os.sendfile(self.connection.fileno(), file.fileno(), first, min(end - first, 1 << 24))

        def head(self, status: int, length: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()

    body = json.dumps(listing).encode()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def timed(command: list[str]) -> tuple[float, int]:
    """Seconds and peak memory in bytes of a command. Raises CalledProcessError."""
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.monotonic() - begun, usage.ru_maxrss * 1024


def by_curl(address: str, folder: Path) -> tuple[float, int]:
    """curl, and then the wait for the disk."""
    target = folder / "curl"
    spent, memory = timed(["curl", "-sf", "-o", str(target), f"{address}/{REPOSITORY}/resolve/{COMMIT}/{SHARD}"])
    begun = time.monotonic()
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    spent += time.monotonic() - begun
    target.unlink()
    return spent, memory


def by_fetch(address: str, folder: Path, megabytes: int) -> tuple[float, int]:
    """The whole program as the container runs it, without the start of Python."""
    cache, gib = folder / "cache", max(1, megabytes // 500)
    options = ["--hub=hf", f"--hub-url={address}", f"--repository={REPOSITORY}", f"--commit={COMMIT}", "--port=0"]
    code = "import sys; from qwen_operator.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "fetch", *options, f"--cache={cache}", f"--size-gib={gib}"]
    spent, memory = timed(command)
    # The second time everything is there: what is left is the start of Python and the look into the cache.
    start, _ = timed(command)
    shutil.rmtree(cache)
    return spent - start, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the downloads go; default: a temporary folder")
    arguments = parser.parse_args()
    ratios: list[float] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        source, target = Path(name) / "source", Path(name) / "target"
        source.mkdir()
        target.mkdir()
        with hub(source, made(source, arguments.megabytes)) as address:
            for _ in range(arguments.rounds):
                curl, curl_memory = by_curl(address, target)
                fetch, memory = by_fetch(address, target, arguments.megabytes)
                ratios.append(curl / fetch)
                print(
                    f"curl {arguments.megabytes / curl:6.0f} MB/s, {curl_memory >> 20} MiB; "
                    f"fetch {arguments.megabytes / fetch:6.0f} MB/s, {memory >> 20} MiB; ratio {ratios[-1]:.2f}",
                    flush=True,
                )
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"median ratio {statistics.median(ratios):.2f} (the hub itself: {own} MiB)")


if __name__ == "__main__":
    main()
