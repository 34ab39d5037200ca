"""Starts nginx in front of the router, keeps its keys and tenants current, and ends it gracefully.

A second nginx, the relay, passes its requests on to the router. It starts before the first one and ends after it.

nginx ends at once at SIGTERM, which is what a kubelet sends, and gracefully only at SIGQUIT. So this program stays as
its parent and translates. Meanwhile it reads the mounted Secret and ConfigMap again every two seconds: a change needs
no restart and ends no request. It is not in the path of a request.
"""

import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from qwen_operator.gateway import nginx, peers
from qwen_operator.gateway.settings import ProxySettings, SettingsError
from qwen_operator.gateway.tenants import Frame, Keys, Tenants, read_keys, read_tenants, settings_file

READ_SECONDS = 2.0
START_SECONDS = 0.02
NGINX = "nginx"
# A larger file is no list of keys or tenants.
MAX_BYTES = 1024 * 1024
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Current:
    """The last good keys and tenants. `refresh` takes over what is new and writes it for nginx."""

    settings: ProxySettings
    salt: str = field(default_factory=lambda: secrets.token_hex(16))
    keys: Keys = field(default_factory=Keys)
    tenants: Tenants | None = None
    _problems: tuple[str, ...] = ()
    _written: str = ""

    def refresh(self) -> None:
        """Read both files once. What cannot be used is logged once and leaves the last good state."""
        problems: list[str] = []
        if self.settings.auth:
            try:
                self.keys = read_keys(read_folder(self.settings.keys_dir), self.keys.of)
                problems += self.keys.problems
            except OSError as error:
                problems.append(f"the keys cannot be read: {error}")
        try:
            self.tenants = read_tenants(_text(self.settings.tenants_file))
        except (OSError, ValueError) as error:
            problems.append(f"the tenants cannot be used: {error}")
        for problem in problems:
            if problem not in self._problems:
                log.error("%s. The last good state stays in use", problem)
        self._problems = tuple(problems)
        self._write()

    def _write(self) -> None:
        limits = self.settings
        frame = Frame(
            limits.auth,
            limits.max_body_bytes,
            limits.max_buffered_bytes,
            limits.body_timeout_seconds,
            limits.cors_origins,
        )
        content = settings_file(frame, self.keys, self.tenants, len(self._problems), self.salt)
        if content == self._written:
            return
        replace(nginx.Files(limits.proxy_dir).settings, content)
        self._written = content
        log.info("keys and tenants taken over; %d tenants have keys", len(self.keys.of))


def read_folder(folder: Path) -> dict[str, str]:
    """The entries of a mounted Secret. Files that begin with a dot belong to the kubelet. Raises OSError."""
    paths = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()]
    return {path.name: _text(path) for path in paths}


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(MAX_BYTES).decode("utf-8", "replace")


def replace(path: Path, content: str) -> None:
    """Write a private file in one step, so that nobody reads half of it."""
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    draft.touch(0o600, exist_ok=False)
    draft.write_text(content, "utf-8")
    draft.rename(path)


def main(environ: Mapping[str, str]) -> int:
    """Run nginx until it ends. Returns the exit status. From here on signals wait until they are asked for."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        settings = ProxySettings.from_env(environ)
        files = nginx.Files(settings.proxy_dir)
        files.bodies.mkdir(mode=0o700, exist_ok=True)
        ident = secrets.token_hex(8)
        replace(files.configuration, nginx.render(settings, ident))
        replace(files.relay_configuration, nginx.render_relay(settings))
        # nginx leaves it behind if it is killed, and then does not start.
        files.relay_socket.unlink(missing_ok=True)
        current = Current(settings)
        current.refresh()
    except (SettingsError, OSError) as error:
        print(f"the proxy cannot start: {error}", file=sys.stderr)
        return 1
    relay = _start(files.relay_configuration)
    try:
        while relay.poll() is None and not files.relay_socket.exists():
            time.sleep(START_SECONDS)
        process = _start(files.configuration)
        if settings.peers:
            _hear_others(settings, ident)
        return _attend(process, relay, current)
    finally:
        relay.send_signal(signal.SIGQUIT)
        relay.wait()


def _hear_others(settings: ProxySettings, ident: str) -> None:
    """Keep reading what tenants take of their limits in the other gateway pods."""
    port = settings.metrics_port
    addresses = partial(peers.resolve, settings.peers, port)
    others = peers.Peers(ident, addresses, port, nginx.Files(settings.proxy_dir).peers, replace)
    threading.Thread(target=others.run, name="peers", daemon=True).start()


def _start(configuration: Path) -> "subprocess.Popen[bytes]":
    command = [NGINX, "-c", str(configuration), "-e", "stderr"]
    if os.geteuid() == 0:
        # Outside a pod. As root, nginx gives its worker another user, who cannot read the private files.
        command += ["-g", "user root;"]
    return subprocess.Popen(command, env={"PATH": os.environ.get("PATH", "")})


def _attend(process: "subprocess.Popen[bytes]", relay: "subprocess.Popen[bytes]", current: Current) -> int:
    while (code := process.poll()) is None:
        if relay.poll() is not None:
            log.error("the relay ended with status %d; the proxy ends too", relay.returncode)
            process.terminate()
            process.wait()
            return 1
        received = signal.sigtimedwait(_SIGNALS, READ_SECONDS)
        if received is not None and received.si_signo != signal.SIGCHLD:
            process.send_signal(signal.SIGQUIT)
        elif received is None:
            current.refresh()
    return code
