"""Downloads files from loopback with curl and with `qwen-operator fetch`, and compares time and memory.

    python -m bench.fetch --megabytes 1000 --rounds 9
    python -m bench.fetch --megabytes 250 --files 4 --rounds 9
    python -m bench.fetch --megabytes 1000 --rounds 9 --tls

They take turns, so that other work on the machine meets both, and each goes first in every other round. Both write to
the same folder, and both wait until the disk has every byte. The fetch also compares the sha256, keeps a journal and
publishes the model. So the second ratio is that to curl and `openssl dgst -sha256`, which reads the files again; the
same with `sha256sum` takes three times as long. Before each of them, the disk writes what is left of earlier work. The
times are without the start of Python. The hub is a small server that sends files with
sendfile, so that it is not the limit. With --tls it cannot: it encrypts, which costs as much.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.unit.fetch.hub import COMMIT, REPOSITORY, blob
from tests.unit.fetch.tls import certificate
from tests.unit.runtime.checkpoint import CONFIG, header


def shard(number: int) -> str:
    """The name of a file of weights."""
    return f"model-{number}.safetensors"


def made(folder: Path, megabytes: int, files: int) -> dict[str, Any]:
    """A model with shards of random bytes, each of so many megabytes. Returns the hub's list of its files."""
    small = {"config.json": json.dumps(CONFIG).encode(), "tokenizer.json": b"{}"}
    siblings: list[dict[str, Any]] = []
    for name, content in small.items():
        (folder / name).write_bytes(content)
        siblings.append({"rfilename": name, "size": len(content), "blobId": blob(content)})
    for number in range(files):
        digest = _write(folder / shard(number), f"model.layers.{number}.weight", megabytes * 10**6 // 2 * 2)
        total = (folder / shard(number)).stat().st_size
        siblings.append({"rfilename": shard(number), "size": total, "lfs": {"sha256": digest, "size": total}})
    return {"sha": COMMIT, "siblings": siblings}


def _write(path: Path, tensor: str, size: int) -> str:
    """A file of weights with one tensor of random bytes; its sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as out:
        head = header({tensor: size})
        out.write(head)
        digest.update(head)
        for first in range(0, size, 1 << 24):
            piece = os.urandom(min(1 << 24, size - first))
            out.write(piece)
            digest.update(piece)
    return digest.hexdigest()


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
    """Seconds by the clock, and seconds of CPU. `disk`: so many of the seconds were the wait for the disk at the end.

    `checksum`: seconds that a checksum would add. `mebibytes`: peak memory.
    """

    seconds: float
    cpu: float
    disk: float = 0.0
    checksum: float = 0.0
    mebibytes: int = 0

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
    return Cost(time.monotonic() - begun, usage.ru_utime + usage.ru_stime)


def by_curl(address: str, folder: Path, names: Sequence[str]) -> Cost:
    """curl, which loads one file after the other, and then the wait for the disk. The checksum comes after it."""
    trusted = os.environ.get("SSL_CERT_FILE")
    targets = [folder / name for name in names]
    wanted = [f"{address}/{REPOSITORY}/resolve/{COMMIT}/{name}" for name in names]
    outputs = [word for pair in zip(targets, wanted, strict=True) for word in ("-o", str(pair[0]), pair[1])]
    cost = timed(["curl", "-sf", *(["--cacert", trusted] if trusted else []), *outputs])
    begun = time.monotonic()
    for target in targets:
        with target.open("rb+") as file:
            os.fsync(file.fileno())
    disk = time.monotonic() - begun
    checksum = timed(["openssl", "dgst", "-sha256", *map(str, targets)]).seconds
    for target in targets:
        target.unlink()
    return replace(cost, seconds=cost.seconds + disk, disk=disk, checksum=checksum)


_FETCH = """
import json, resource, sys, time
from pathlib import Path
from qwen_operator.cli import main
import qwen_operator.fetch.program
def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
begun, cpu = time.monotonic(), used()
code = main()
seconds, cpu = time.monotonic() - begun, used() - cpu
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(json.dumps({"seconds": seconds, "cpu": cpu, "mebibytes": int(peak) >> 10}))
sys.exit(code)
"""


def by_fetch(address: str, folder: Path, gib: int) -> Cost:
    """The whole program as the container runs it, without the start of Python. Raises CalledProcessError."""
    cache = folder / "cache"
    options = ["--hub=hf", f"--hub-url={address}", f"--repository={REPOSITORY}", f"--commit={COMMIT}", "--port=0"]
    command = [sys.executable, "-c", _FETCH, "fetch", *options, f"--cache={cache}", f"--size-gib={gib}"]
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    shutil.rmtree(cache)
    return Cost(**json.loads(said.splitlines()[-1]))


@dataclass(frozen=True, slots=True)
class Round:
    """One download with each."""

    curl: Cost
    fetch: Cost

    @property
    def ratio(self) -> float:
        """The rate of the fetch compared with that of curl."""
        return self.curl.seconds / self.fetch.seconds

    @property
    def ratio_checked(self) -> float:
        """The same if curl's files are checked as well."""
        return (self.curl.seconds + self.curl.checksum) / self.fetch.seconds

    def line(self, megabytes: int) -> str:
        curl, fetch = self.curl, self.fetch
        parts = f"{curl.disk:.2f} s of {curl.seconds:.2f} s for the disk, sha256 {curl.checksum:.2f} s more"
        ratios = f"ratio {self.ratio:.2f}, with sha256 {self.ratio_checked:.2f}"
        return f"curl {curl.line(megabytes)} ({parts}); fetch {fetch.line(megabytes)}; {ratios}"


def measured(address: str, folder: Path, names: Sequence[str], gib: int, fetch_first: bool) -> Round:
    """One round. The disk has nothing left to write when each of them begins."""
    costs: dict[bool, Cost] = {}
    for is_fetch in (fetch_first, not fetch_first):
        os.sync()
        costs[is_fetch] = by_fetch(address, folder, gib) if is_fetch else by_curl(address, folder, names)
    return Round(costs[False], costs[True])


def summary(rounds: Sequence[Round]) -> str:
    """The medians over the rounds, and the extremes of the ratio to curl."""
    ratios, checked = ([getattr(one, name) for one in rounds] for name in ("ratio", "ratio_checked"))
    peak = max(one.fetch.mebibytes for one in rounds)
    return (
        f"median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"with sha256 {statistics.median(checked):.2f}; peak memory of the fetch {peak} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="of each file")
    parser.add_argument("--files", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the downloads go; default: a temporary folder")
    arguments = parser.parse_args()
    megabytes, rounds = arguments.megabytes * arguments.files, []
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        source, target, context = Path(home) / "source", Path(name), None
        source.mkdir()
        if arguments.tls:
            context, trusted = certificate(Path(home))
            os.environ["SSL_CERT_FILE"] = str(trusted)
        names = [shard(number) for number in range(arguments.files)]
        with hub(source, made(source, arguments.megabytes, arguments.files), context) as address:
            for number in range(arguments.rounds):
                rounds.append(measured(address, target, names, megabytes // 500 + 1, number % 2 == 1))
                print(rounds[-1].line(megabytes), flush=True)
    print(summary(rounds))


if __name__ == "__main__":
    main()
