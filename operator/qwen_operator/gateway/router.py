"""Start the router: collect its keys, build its command line, become it.

smg takes its keys from the command line only: it knows no file and no environment variable for them. So smg's own
entry point is called in this process instead of executing the command: the keys never are arguments of a process,
which `/proc`, `ps` and security agents that record every exec would show to others.

smg reads the keys once. A key that is added to or removed from the Secret counts after the pod's next start.
"""

import importlib
import logging
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from qwen_operator.gateway.settings import CONTROL_PLANE_KEY_FILE, WORKERS_FILE, RouterSettings, SettingsError

POLL_SECONDS = 0.5
_TENANT = re.compile(r"[A-Za-z0-9._-]+")
_KEY = re.compile(r"[!-~]+")

log = logging.getLogger(__name__)

# What smg does by itself, and why it is told otherwise (measured with smg 1.13.0):
# * A registration that fails is tried again every 30 s for 30 minutes, also when the worker has left the file by
#   then, and may end in a worker that no file lists: tried every second, given up after 30 s, and the file is read
#   again every 2 s, which removes such a worker and registers one that is listed and came late.
# * Health is probed every 60 s at /health, where SGLang generates a token; /ready is a flag. A worker that refuses
#   connections is left out 2 s after the last contact without any probe; other workers get the request.
# * After a failure a circuit breaker keeps a worker out for 60 s, longer than an engine's restart in place needs.
_FIXED = (
    "--enable-igw",
    "--discovery-provider=file",
    "--discovery-check-interval-secs=2",
    "--worker-startup-check-interval=1",
    "--worker-startup-timeout-secs=30",
    "--health-check-endpoint=/ready",
    "--health-check-interval-secs=10",
    "--health-check-timeout-secs=5",
    "--health-failure-threshold=3",
    "--health-success-threshold=1",
    "--cb-timeout-duration-secs=10",
    "--policy=cache_aware",
    "--disable-tokenizer-autoload",
    "--log-json",
)


def build_command(settings: RouterSettings, control_plane_key: str, tenants: Mapping[str, str]) -> list[str]:
    """Return the arguments of `smg`. `tenants` maps tenant ids to API keys; none means open to everybody.

    Raises SettingsError for a tenant id or key that smg would read differently, or for a key that two tenants have.
    """
    command = ["launch", *_FIXED]
    command += [
        f"--discovery-file={settings.run_dir / WORKERS_FILE}",
        f"--host={settings.host}",
        f"--port={settings.port}",
        f"--prometheus-port={settings.metrics_port}",
        f"--max-payload-size={settings.max_body_bytes}",
        f"--max-concurrent-requests={settings.max_concurrent_requests}",
        f"--queue-size={settings.queue_size}",
        f"--queue-timeout-secs={settings.queue_timeout_seconds}",
        f"--request-timeout-secs={settings.request_timeout_seconds}",
        f"--shutdown-grace-period-secs={settings.shutdown_grace_seconds}",
        f"--log-level={'warn' if settings.log_level == 'warning' else settings.log_level}",
        # Without this, anybody may add and remove workers.
        f"--control-plane-api-keys=agent:agent:admin:{control_plane_key}",
    ]
    owners: dict[str, str] = {}
    for tenant, key in sorted(tenants.items()):
        _check(tenant, key)
        if owners.setdefault(key, tenant) != tenant:
            raise SettingsError(f"the tenants {owners[key]!r} and {tenant!r} have the same key; each needs its own")
        command.append(f"--tenant-api-key={tenant}:{key}")
    return command


def _check(tenant: str, key: str) -> None:
    if not _TENANT.fullmatch(tenant):
        raise SettingsError(f"the tenant id {tenant!r} is not usable; it may hold letters, digits, '.', '_' and '-'")
    if not _KEY.fullmatch(key):
        found = "is empty" if not key else "contains white space or a character outside ASCII"
        raise SettingsError(f"the key of tenant {tenant!r} {found}; it must be one word of printable ASCII characters")


def read_tenants(keys_dir: Path) -> dict[str, str]:
    """Read a mounted Secret: file name = tenant id, content = key. Empty when there is none yet.

    Dot files are the kubelet's own (`..data` and the directory behind it).
    """
    try:
        files = sorted(path for path in keys_dir.iterdir() if not path.name.startswith(".") and path.is_file())
        return {path.name: path.read_text("utf-8", "replace").strip("\r\n") for path in files}
    except FileNotFoundError:
        return {}


def control_plane_key(run_dir: Path) -> str:
    """Return this pod's control-plane key, made at the first start and kept for restarts of a container."""
    path = run_dir / CONTROL_PLANE_KEY_FILE
    if path.exists():
        return path.read_text("ascii")
    key = secrets.token_urlsafe(32)
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    draft.touch(0o600, exist_ok=False)
    draft.write_text(key, "ascii")
    # The agent must never read half a key.
    draft.rename(path)
    return key


def main(
    environ: Mapping[str, str],
    *,
    launch: Callable[[Sequence[str]], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Wait for the worker file and the keys, then be smg until it ends. Returns the exit status."""
    # As process 1 of a container, a program that handles no SIGTERM cannot be ended by one.
    signal.signal(signal.SIGTERM, _leave)
    try:
        settings = RouterSettings.from_env(environ)
        key = control_plane_key(settings.run_dir)
        _wait((settings.run_dir / WORKERS_FILE).exists, f"{WORKERS_FILE} in {settings.run_dir}", sleep)
        tenants: dict[str, str] = {}
        if settings.auth:
            _wait(lambda: bool(read_tenants(settings.keys_dir)), f"a key in {settings.keys_dir}", sleep)
            tenants = read_tenants(settings.keys_dir)
        command = build_command(settings, key, tenants)
    except (SettingsError, OSError) as error:
        print(f"the router cannot start: {error}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    (launch or run_smg)(command)
    return 0


def run_smg(command: Sequence[str]) -> None:
    """Run smg in this process until it ends; its failures are its own exceptions."""
    importlib.import_module("smg.cli").main(list(command))


def _wait(condition: Callable[[], bool], what: str, sleep: Callable[[float], None]) -> None:
    if condition():
        return
    log.info("waiting for %s", what)
    while not condition():
        sleep(POLL_SECONDS)


def _leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)
