"""Reads and checks the environment variables of the gateway's three programs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qwen_operator.api.claims import NameRights
from qwen_operator.config.section import ConfigError
from qwen_operator.config.tenancy import name_rights
from qwen_operator.untrusted import clean, decode, digits

WORKERS_FILE = "workers.json"
"""In the run dir: the workers, as the router reads them."""
WAITING_FILE = "waiting.json"
"""In the run dir: the served names without a worker that is ready."""
CONTROL_PLANE_KEY_FILE = "control-plane-key"
_LEVELS = 4
ROUTER_PORT = 8001
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+")
LOG_LEVELS = ("debug", "info", "warning", "error")


class SettingsError(ValueError):
    """A wrong setting. The message names the variable or file, the value, and what is allowed."""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """`namespaces` is empty if the agent watches the whole cluster. `port` serves health and metrics.

    `name_rights`: which namespaces may serve which names.
    """

    namespaces: tuple[str, ...]
    run_dir: Path
    router_url: str
    port: int
    cluster_domain: str
    name_rights: NameRights = field(default_factory=NameRights)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "AgentSettings":
        """Raises SettingsError."""
        names = (name.strip() for name in environ.get("QWEN_WATCH_NAMESPACES", "").split(","))
        url = environ.get("QWEN_GATEWAY_ROUTER_URL", f"http://127.0.0.1:{ROUTER_PORT}").rstrip("/")
        if not url.startswith(("http://", "https://")):
            raise SettingsError(f"QWEN_GATEWAY_ROUTER_URL is {url!r}; it must start with http:// or https://")
        return cls(
            namespaces=tuple(name for name in names if name),
            run_dir=Path(environ.get("QWEN_GATEWAY_RUN_DIR", "/run/qwen")),
            router_url=url,
            port=_number(environ, "QWEN_AGENT_PORT", 8081, 1, 65535),
            cluster_domain=environ.get("QWEN_CLUSTER_DOMAIN", "cluster.local"),
            name_rights=_name_rights(environ.get("QWEN_SERVED_NAMES", "")),
        )


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Limits of the router.

    `request_timeout_seconds` also ends streams, so it must be longer than the longest answer.
    `max_concurrent_requests` 0 means no limit; a request above the limit waits in a queue of `queue_size` requests.
    `log_level` is debug, info, warning or error.
    """

    run_dir: Path
    host: str
    port: int
    metrics_port: int
    max_body_bytes: int
    max_concurrent_requests: int
    queue_size: int
    queue_timeout_seconds: int
    request_timeout_seconds: int
    shutdown_grace_seconds: int
    log_level: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "RouterSettings":
        """Raises SettingsError."""
        level = environ.get("QWEN_LOG_LEVEL", "").lower() or "info"
        if level not in LOG_LEVELS:
            raise SettingsError(f"QWEN_LOG_LEVEL is {level!r}; it must be one of {', '.join(LOG_LEVELS)}")
        return cls(
            run_dir=Path(environ.get("QWEN_GATEWAY_RUN_DIR", "/run/qwen")),
            host=environ.get("QWEN_GATEWAY_ROUTER_HOST", "127.0.0.1"),
            port=_number(environ, "QWEN_GATEWAY_ROUTER_PORT", ROUTER_PORT, 1, 65535),
            metrics_port=_number(environ, "QWEN_GATEWAY_METRICS_PORT", 9090, 1, 65535),
            max_body_bytes=_number(environ, "QWEN_GATEWAY_MAX_BODY_BYTES", 16 * 1024 * 1024, 1024),
            max_concurrent_requests=_number(environ, "QWEN_GATEWAY_MAX_CONCURRENT_REQUESTS", 1024),
            queue_size=_number(environ, "QWEN_GATEWAY_QUEUE_SIZE", 1024),
            queue_timeout_seconds=_number(environ, "QWEN_GATEWAY_QUEUE_TIMEOUT_SECONDS", 60, 1),
            request_timeout_seconds=_number(environ, "QWEN_GATEWAY_REQUEST_TIMEOUT_SECONDS", 3600, 1),
            shutdown_grace_seconds=_number(environ, "QWEN_GATEWAY_SHUTDOWN_GRACE_SECONDS", 180),
            log_level=level,
        )


def _name_rights(text: str) -> NameRights:
    try:
        return name_rights({"servedNames": decode(text, _LEVELS) if text else {}})
    except (ValueError, ConfigError) as error:
        raise SettingsError(
            f"QWEN_SERVED_NAMES must be a JSON object of namespaces and lists of names: {error}"
        ) from error


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """What the proxy in front of the router needs.

    `run_dir` is shared with agent and router and only read. `proxy_dir` belongs to the proxy alone: its configuration,
    the digests of the keys and the request bodies that do not fit in memory. Times are in seconds.
    `max_buffered_bytes` bounds the request bodies above 64 KiB that the pod holds at once. `hold_requests`: how many
    requests for one model may wait for a replica, each for at most `hold_seconds`. 0 seconds: none waits.
    A stream that has waited for `hold_head_seconds` gets the head of its answer; 0: none does. `peers`: a name with the
    addresses of all gateway pods, whose requests count for the tenants' limits too; "" if this one counts for itself.
    """

    auth: bool
    keys_dir: Path
    tenants_file: Path
    run_dir: Path
    proxy_dir: Path
    host: str
    port: int
    metrics_port: int
    router: str
    max_body_bytes: int
    max_buffered_bytes: int
    body_timeout_seconds: int
    request_timeout_seconds: int
    shutdown_grace_seconds: int
    max_requests: int
    hold_requests: int
    hold_seconds: int
    hold_head_seconds: int
    cors_origins: tuple[str, ...]
    peers: str = ""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "ProxySettings":
        """Raises SettingsError."""
        auth = environ.get("QWEN_GATEWAY_AUTH", "keys")
        if auth not in ("keys", "none"):
            raise SettingsError(f"QWEN_GATEWAY_AUTH is {auth!r}; it must be keys or none")
        router_port = _number(environ, "QWEN_GATEWAY_ROUTER_PORT", ROUTER_PORT, 1, 65535)
        return cls(
            auth=auth == "keys",
            keys_dir=Path(environ.get("QWEN_GATEWAY_KEYS_DIR", "/etc/qwen-gateway-keys")),
            tenants_file=Path(environ.get("QWEN_GATEWAY_TENANTS_FILE", "/etc/qwen-gateway-tenants/tenants.json")),
            run_dir=Path(environ.get("QWEN_GATEWAY_RUN_DIR", "/run/qwen")),
            proxy_dir=Path(environ.get("QWEN_GATEWAY_PROXY_DIR", "/run/qwen-proxy")),
            host=environ.get("QWEN_GATEWAY_HOST", "0.0.0.0"),
            port=_number(environ, "QWEN_GATEWAY_PORT", 8000, 1, 65535),
            metrics_port=_number(environ, "QWEN_GATEWAY_PROXY_METRICS_PORT", 9091, 1, 65535),
            router=f"{environ.get('QWEN_GATEWAY_ROUTER_HOST', '127.0.0.1')}:{router_port}",
            max_body_bytes=_number(environ, "QWEN_GATEWAY_MAX_BODY_BYTES", 32 * 1024 * 1024, 1024),
            max_buffered_bytes=_number(environ, "QWEN_GATEWAY_MAX_BUFFERED_BYTES", 384 * 1024 * 1024, 1024),
            body_timeout_seconds=_number(environ, "QWEN_GATEWAY_BODY_TIMEOUT_SECONDS", 60, 1),
            request_timeout_seconds=_number(environ, "QWEN_GATEWAY_REQUEST_TIMEOUT_SECONDS", 3600, 1),
            shutdown_grace_seconds=_number(environ, "QWEN_GATEWAY_SHUTDOWN_GRACE_SECONDS", 180),
            max_requests=_number(environ, "QWEN_GATEWAY_MAX_CONCURRENT_REQUESTS", 1024)
            + _number(environ, "QWEN_GATEWAY_QUEUE_SIZE", 1024),
            hold_requests=_number(environ, "QWEN_GATEWAY_HOLD_REQUESTS", 100, 1),
            hold_seconds=_number(environ, "QWEN_GATEWAY_HOLD_SECONDS", 540),
            hold_head_seconds=_number(environ, "QWEN_GATEWAY_HOLD_HEAD_SECONDS", 20),
            cors_origins=_origins(environ),
            peers=environ.get("QWEN_GATEWAY_PEERS", ""),
        )


def _origins(environ: Mapping[str, str]) -> tuple[str, ...]:
    origins = tuple(environ.get("QWEN_GATEWAY_CORS_ALLOWED_ORIGINS", "").split())
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise SettingsError(
                f"QWEN_GATEWAY_CORS_ALLOWED_ORIGINS has {origin[:80]!r}; an origin is a scheme and a host, "
                "for example https://chat.example.com, or * alone"
            )
    return origins


def _number(environ: Mapping[str, str], name: str, default: int, low: int = 0, high: int = 2**53) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    number = digits(text, high, -1)
    if number < low:
        raise SettingsError(f"{name} is {clean(text, 80)!r}; it must be a whole number from {low} to {high}")
    return number
