"""Reads what tenants have taken of their limits in the other gateway pods, and writes it for nginx.

Each pod has the whole limits, and takes off them what the others have taken (lua/qwen/peers.lua). A headless Service
names the pods that are ready. A pod that cannot be read, or another version's, counts for itself, as all did before.
"""

import http.client
import json
import logging
import socket
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from qwen_operator import untrusted

PATH = "/limits"
READ_SECONDS = 1.0
TIMEOUT_SECONDS = 1.0
FRESH_SECONDS = 5.0
"""A pod that was not read for so long has ended, and its requests hold no slots."""
MOST_PEERS = 32
MOST_BYTES = 1 << 20
MOST_TENANTS = 10_000
_LEVELS = 4
_LONGEST_NAME = 253
_LARGEST = 1e15
_LARGEST_AGE_SECONDS = 1e9
_PARTS = ("running", "requests", "tokens")

log = logging.getLogger(__name__)

Page = Mapping[str, object]


def read_page(content: bytes) -> tuple[str, Page]:
    """The id of a gateway pod, and its page with nothing else in it. Raises ValueError."""
    value = untrusted.decode(content, _LEVELS)
    ident = value.get("id") if isinstance(value, dict) else None
    if not isinstance(ident, str) or not 0 < len(ident) <= _LONGEST_NAME:
        raise ValueError("it is no page of a gateway pod")
    parts = {part: _numbers(value.get(part)) for part in _PARTS}
    return ident, {"age": _number(value.get("age"), _LARGEST_AGE_SECONDS) or 0.0, **parts}


def _numbers(part: object) -> dict[str, float]:
    if not isinstance(part, dict) or len(part) > MOST_TENANTS:
        return {}
    numbers = {name: _number(value, _LARGEST) for name, value in part.items() if len(name) <= _LONGEST_NAME}
    return {name: value for name, value in numbers.items() if value}


def _number(value: object, largest: float) -> float:
    """A number that can count something; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return value if untrusted.count(value, largest) else 0.0


def resolve(host: str, port: int) -> Collection[str]:
    """The addresses of a name. Raises OSError."""
    return {str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}


@dataclass(slots=True)
class Peers:
    """The last pages of the other gateway pods.

    `own`: the id of this pod's nginx, so that it does not count twice. `addresses` returns those of all gateway pods,
    also of this one, or raises OSError. `file`: what nginx reads. `clock` returns monotonic seconds, `now` those since
    1970.
    """

    own: str
    addresses: Callable[[], Collection[str]]
    port: int
    file: Path
    write: Callable[[Path, str], None]
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    _pages: dict[str, tuple[float, Page]] = field(default_factory=dict)
    _problem: str = ""
    _written: bool = False

    def run(self) -> NoReturn:
        """Read for ever."""
        while True:
            # First of all, the pod's own nginx begins to listen.
            time.sleep(READ_SECONDS)
            try:
                self.step()
            except Exception:
                log.exception("the limits of the other gateway pods cannot be read")

    def step(self) -> None:
        """Read every other pod once, and write what is known."""
        problem = ""
        try:
            addresses = sorted(self.addresses())[:MOST_PEERS]
        except OSError as error:
            addresses, problem = [], f"the gateway pods cannot be found: {error}"
        for address in addresses:
            try:
                ident, page = read_page(_get(address, self.port))
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"the gateway pod at {address} cannot be read: {untrusted.clean(error, 200)}"
                continue
            if not ident.startswith(f"{self.own}-"):
                self._pages[ident] = self.clock(), page
        if problem and problem != self._problem:
            log.warning("%s. Each pod counts for itself there", problem)
        self._problem = problem
        oldest = self.clock() - FRESH_SECONDS
        self._pages = {ident: one for ident, one in self._pages.items() if one[0] >= oldest}
        if self._pages or self._written:
            pages = {ident: page for ident, (_, page) in self._pages.items()}
            # The time makes every file another one: nginx sees that it is still written.
            self.write(self.file, json.dumps({"at": self.now(), "peers": pages}))
            self._written = bool(pages)


def _get(address: str, port: int) -> bytes:
    """The page of a gateway pod. Raises OSError, HTTPException, or ValueError if it is too long or too slow."""
    connection = http.client.HTTPConnection(address, port, timeout=TIMEOUT_SECONDS)
    end = time.monotonic() + TIMEOUT_SECONDS
    try:
        connection.request("GET", PATH)
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        content = b""
        while piece := response.read1(1 << 16):
            content += piece
            if len(content) > MOST_BYTES or time.monotonic() > end:
                raise ValueError("its page is too long or too slow")
        return content
    finally:
        connection.close()
