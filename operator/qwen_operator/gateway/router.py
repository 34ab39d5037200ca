"""Starts the router: makes its control-plane key, builds its command line, and runs smg in this process.

smg listens on loopback only. It knows no key of a client: the proxy in front checks them and names the tenant in a
header that smg trusts. Only its metrics have a port that other pods reach.

smg accepts its control-plane key only on its command line, not from a file or an environment variable. The arguments
of a process are visible in `/proc`, in `ps` and to security agents that record every exec. So this program does not
execute a command. It calls smg's entry point in its own process, and the key never becomes an argument of a process.
"""

import importlib
import logging
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

log = logging.getLogger(__name__)

# smg's defaults, and why these options change them (measured with smg 1.13.0):
# * By default smg retries a failed registration every 30 s for 30 minutes, even if the worker has left the file. That
#   may register a worker that no file lists. With these options smg retries every second and gives up after 30 s. It
#   reads the file again every 2 s, which removes such a worker and registers a listed one that came late.
# * By default smg probes /health every 60 s, for which SGLang generates a token. /ready only returns a flag. Without
#   any probe, smg stops using a worker that refuses connections 2 s after the last contact. Other workers get the
#   request.
# * By default a circuit breaker excludes a worker for 60 s after a failure. An engine restarts in place in less time.
# * By default smg keeps every conversation and response in memory, and runs "background" responses that no limit of a
#   tenant covers.
# smg's retries stay as they are: five tries within half a second. So a full engine, which answers 503, is not asked for
# ever. What no engine can take at the moment waits in the proxy (decision 18).
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
    "--trust-tenant-header",
    "--history-backend=none",
    "--max-background-responses=0",
    "--log-json",
)


def build_command(settings: RouterSettings, control_plane_key: str) -> list[str]:
    """Return the arguments of `smg`."""
    return [
        "launch",
        *_FIXED,
        f"--discovery-file={settings.run_dir / WORKERS_FILE}",
        f"--host={settings.host}",
        f"--port={settings.port}",
        "--prometheus-host=0.0.0.0",
        f"--prometheus-port={settings.metrics_port}",
        f"--max-payload-size={settings.max_body_bytes}",
        f"--max-concurrent-requests={settings.max_concurrent_requests}",
        f"--queue-size={settings.queue_size}",
        f"--queue-timeout-secs={settings.queue_timeout_seconds}",
        f"--request-timeout-secs={settings.request_timeout_seconds}",
        f"--shutdown-grace-period-secs={settings.shutdown_grace_seconds}",
        f"--log-level={'warn' if settings.log_level == 'warning' else settings.log_level}",
        # Without this key, every process in the pod could add and remove workers.
        f"--control-plane-api-keys=agent:agent:admin:{control_plane_key}",
    ]


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
    """Wait for the worker file, then run smg until it ends. Returns the exit status."""
    # Process 1 of a container ignores SIGTERM unless it handles the signal.
    signal.signal(signal.SIGTERM, _leave)
    try:
        settings = RouterSettings.from_env(environ)
        key = control_plane_key(settings.run_dir)
        _wait((settings.run_dir / WORKERS_FILE).exists, f"{WORKERS_FILE} in {settings.run_dir}", sleep)
        command = build_command(settings, key)
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
