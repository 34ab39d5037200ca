"""Starts the router: reads its keys, builds its command line, and runs smg in this process.

smg accepts keys only on its command line, not from a file or an environment variable. The arguments of a process are
visible in `/proc`, in `ps` and to security agents that record every exec. So this program does not execute a command.
It calls smg's entry point in its own process, and the keys never become arguments of a process.

smg reads the keys once. A change of the Secret takes effect after the pod's next start.
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

# smg's defaults, and why these options change them (measured with smg 1.13.0):
# * By default smg retries a failed registration every 30 s for 30 minutes, even if the worker has left the file. That
#   may register a worker that no file lists. With these options smg retries every second and gives up after 30 s. It
#   reads the file again every 2 s, which removes such a worker and registers a listed one that came late.
# * By default smg probes /health every 60 s, for which SGLang generates a token. /ready only returns a flag. Without
#   any probe, smg stops using a worker that refuses connections 2 s after the last contact. Other workers get the
#   request.
# * By default a circuit breaker excludes a worker for 60 s after a failure. An engine restarts in place in less time.
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
    """Return the arguments of `smg`. `tenants` maps tenant ids to API keys; without tenants no client needs a key.

    Raises SettingsError if smg would misread a tenant id or a key, or if two tenants have the same key.
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
        # Without this key, every client could add and remove workers.
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
        raise SettingsError(f"the tenant id {tenant!r} is not usable; it may contain letters, digits, '.', '_' and '-'")
    if not _KEY.fullmatch(key):
        defect = "is empty" if not key else "contains white space or a character outside ASCII"
        raise SettingsError(f"the key of tenant {tenant!r} {defect}; it must be one word of printable ASCII characters")


def read_tenants(keys_dir: Path) -> dict[str, str]:
    """Read a mounted Secret: file name = tenant id, content = key. Empty if there is no Secret yet.

    Files that begin with a dot belong to the kubelet (`..data` and the directory behind it).
    """
    try:
        files = sorted(path for path in keys_dir.iterdir() if not path.name.startswith(".") and path.is_file())
        return {path.name: path.read_text("utf-8", "replace").strip("\r\n") for path in files}
    except FileNotFoundError:
        return {}


def control_plane_key(run_dir: Path) -> str:
    """Return this pod's control-plane key. The first start creates it; later starts of the container reuse it."""
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
    """Wait for the worker file and the keys, then run smg until it ends. Returns the exit status."""
    # Process 1 of a container ignores SIGTERM unless it handles the signal.
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
    """Run smg in this process until it ends. It raises smg's own exceptions."""
    importlib.import_module("smg.cli").main(list(command))


def _wait(condition: Callable[[], bool], awaited: str, sleep: Callable[[float], None]) -> None:
    if condition():
        return
    log.info("waiting for %s", awaited)
    while not condition():
        sleep(POLL_SECONDS)


def _leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)
