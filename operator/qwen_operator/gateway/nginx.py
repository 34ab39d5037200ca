"""The configuration of nginx, the proxy in front of the router. Pure.

Each address of the router that clients may use stands in ROUTES. Everything else is 404, whatever the router would
answer. Measured with smg 1.13.0, these are closed for a reason:

* `/v1/rerank` and `/rerank`: smg sends them to any worker, whatever the body's `model` says.
* `/v1/tokenize`, `/v1/detokenize`: smg answers them itself, and only with tokenizers that it does not load here.
* `/generate`: SGLang's own interface, without limits of a model's chat format.
* `/v1/conversations`, `/v1/responses/ID`: smg keeps no history here.
* `/get_server_info`, `/get_model_info`, `/health_generate`, `/engine_metrics`: smg asks engines, without a key.
* `/workers`, `/wasm`, `/flush_cache` and alike: smg's control plane.
"""

from dataclasses import dataclass
from pathlib import Path

from qwen_operator.gateway import peers
from qwen_operator.gateway.settings import WAITING_FILE, WORKERS_FILE, ProxySettings

ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/classify",
    "/v1/messages",
    "/v1/messages/count_tokens",
)
"""POST with a key; the body is JSON and names a model."""
HEALTH = ("/health", "/liveness", "/readiness")
"""GET without a key: whether the proxy and the router run. Nothing about engines."""
MODELS = "/v1/models"
"""GET with a key: the list, and below it one model."""
TENANT_HEADER = "x-smg-tenant-id"
PASSED_ON = (
    "x-request-id",
    "x-correlation-id",
    "traceparent",
    "tracestate",
    "anthropic-version",
    "anthropic-beta",
)
"""The request headers that reach the router as the client wrote them. All others end here."""

MODULES = Path("/usr/lib/nginx/modules")
LUA = Path(__file__).parent / "lua"
# As in lua/qwen/limits.lua.
SMALL_BODY_BYTES = 65536
MAX_CONNECTIONS = 65536
# A load balancer in front must be the one that closes an idle connection. Otherwise it sends a request on a connection
# that ends at that moment, and answers 502. An ALB waits at most 4000 s, Envoy an hour.
IDLE_SECONDS = 4100
# Headers of an answer that give nginx orders.
_OTHER_ORDERS = "X-Accel-Expires X-Accel-Limit-Rate X-Accel-Buffering X-Accel-Charset"
_ORDERS = f"X-Accel-Redirect {_OTHER_ORDERS}"
# The part of all requests that may wait for a replica, so that they never take the place of those that run.
HOLD_SHARE = 4


@dataclass(frozen=True, slots=True)
class Files:
    """Where the proxy keeps its files, all below its own folder."""

    folder: Path

    @property
    def configuration(self) -> Path:
        return self.folder / "nginx.conf"

    @property
    def settings(self) -> Path:
        """What nginx reads again while it runs: digests of keys, and tenants."""
        return self.folder / "settings.json"

    @property
    def peers(self) -> Path:
        """What nginx reads of the other gateway pods."""
        return self.folder / "peers.json"

    @property
    def relay_configuration(self) -> Path:
        return self.folder / "relay.conf"

    @property
    def relay_socket(self) -> Path:
        return self.folder / "relay.sock"

    @property
    def bodies(self) -> Path:
        return self.folder / "bodies"


def render(settings: ProxySettings, ident: str = "") -> str:
    """The whole of nginx.conf. nginx runs one worker process, which counts for all tenants."""
    files = Files(settings.proxy_dir)
    return f"""\
{_process(settings, "nginx.pid")}
http {{
{_common(files)}
    client_max_body_size {settings.max_body_bytes};
    client_body_buffer_size {SMALL_BODY_BYTES};
    client_header_timeout 15s;
    # The program answers a slow body with 408 before this time, which ends the connection without an answer.
    client_body_timeout {settings.body_timeout_seconds + 5}s;
    lingering_time 5s;
    lingering_timeout 2s;
    # Otherwise the head of a stream would wait for its end, if the client or a proxy in front speaks HTTP/1.0.
    lua_http10_buffering off;
{_program(settings, files)}
{_upstream("router", settings.router)}
{_upstream("relay", f"unix:{files.relay_socket}")}
{_public(settings)}
{_inside(settings, ident)}
}}
"""


def _program(settings: ProxySettings, files: Files) -> str:
    """How the Lua program starts: its files, how long requests may wait, and the way to the second nginx."""
    return f"""\
    init_worker_by_lua_block {{
        require("qwen.state").start({{
            settings = "{files.settings}",
            workers = "{settings.run_dir}/{WORKERS_FILE}",
            waiting = "{settings.run_dir}/{WAITING_FILE}",
            peers = "{files.peers}",
        }}, {{
            seconds = {settings.hold_seconds},
            requests = {settings.hold_requests},
            total = {max(1, settings.max_requests // HOLD_SHARE)},
            grace = {settings.shutdown_grace_seconds},
        }}, {{
            socket = "{files.relay_socket}",
            head_seconds = {settings.hold_head_seconds},
            answer_seconds = {settings.request_timeout_seconds},
            tenant_header = "{TENANT_HEADER}",
            passed_on = {{{", ".join(f'"{name}"' for name in PASSED_ON)}}},
        }})
    }}"""


def render_relay(settings: ProxySettings) -> str:
    """The whole of relay.conf: the second nginx, which only tells apart who answers (lua/qwen/relay.lua).

    It is a process of its own because nginx closes its sockets as soon as it is to end, while requests still run.
    """
    files = Files(settings.proxy_dir)
    return f"""\
{_process(settings, "relay.pid")}
http {{
{_common(files)}
    # The first nginx has checked the size.
    client_max_body_size 0;
{_upstream("router", settings.router)}
    server {{
        listen unix:{files.relay_socket} backlog=1024;
        set $qwen_request_seconds {settings.request_timeout_seconds};
        keepalive_timeout 60s;
        keepalive_requests 1000000;
        error_page 400 408 413 414 494 500 502 503 504 @failed;
        proxy_http_version 1.1;
        proxy_set_header Host router;
        proxy_set_header Connection "";
        proxy_request_buffering off;
        proxy_buffering off;
        proxy_next_upstream off;
        proxy_connect_timeout 5s;
        proxy_read_timeout {settings.request_timeout_seconds + 5}s;
        # An engine must not choose the location that goes on with a request.
        proxy_ignore_headers {_ORDERS};
        header_filter_by_lua_block {{ require("qwen.relay").head() }}
        location / {{
            proxy_pass http://router;
        }}
        # The first nginx answers for both, or sends the request again.
        location @failed {{
            content_by_lua_block {{ require("qwen.relay").failed() }}
        }}
    }}
}}
"""


def _process(settings: ProxySettings, pid: str) -> str:
    connections = min(MAX_CONNECTIONS, 2 * settings.max_requests + 1024)
    return f"""\
load_module {MODULES}/ndk_http_module.so;
load_module {MODULES}/ngx_http_lua_module.so;
daemon off;
worker_processes 1;
pid {settings.proxy_dir}/{pid};
error_log stderr error;
worker_shutdown_timeout {settings.shutdown_grace_seconds or 1}s;
events {{
    worker_connections {connections};
}}"""


def _common(files: Files) -> str:
    temporary = "\n".join(
        f"    {module}_temp_path {files.bodies};" for module in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
    access_log off;
    server_tokens off;
    default_type application/json;
{temporary}
    lua_package_path "{LUA}/?.lua;/usr/share/lua/5.1/?.lua;;";"""


def _upstream(name: str, server: str) -> str:
    return f"""\
    upstream {name} {{
        server {server};
        keepalive 64;
        # smg keeps an idle connection open for longer than 20 s, and the relay for 60 s.
        keepalive_timeout 10s;
    }}"""


def _public(settings: ProxySettings) -> str:
    """The server for clients."""
    health = "\n".join(_health(path) for path in HEALTH)
    return f"""\
    server {{
        listen {settings.host}:{settings.port} backlog=1024;
        keepalive_timeout {IDLE_SECONDS}s;
        set $qwen_ticket "";
        set $qwen_tenant "";
        set $qwen_max_body_bytes {settings.max_body_bytes};
        error_page 400 404 405 413 414 500 502 503 504 @refused;
        header_filter_by_lua_block {{ require("qwen.requests").head() }}
        body_filter_by_lua_block {{ require("qwen.requests").piece() }}
        log_by_lua_block {{ require("qwen.requests").finish() }}
{_passing(settings)}
{_models()}
{health}
{_again("@again", "false")}
{_again("@cut", "true")}
        location @refused {{
            content_by_lua_block {{ require("qwen.answers").of_nginx() }}
        }}
        location / {{
            content_by_lua_block {{ require("qwen.answers").no_route() }}
        }}
    }}"""


def _passing(settings: ProxySettings) -> str:
    """How requests go on, what of an answer is an order for nginx, and ROUTES."""
    headers = "\n".join(f"        proxy_set_header {name} $http_{name.replace('-', '_')};" for name in PASSED_ON)
    routes = "\n".join(_route(path) for path in ROUTES)
    return f"""\
        proxy_http_version 1.1;
        proxy_pass_request_headers off;
        proxy_set_header Host router;
        proxy_set_header Connection "";
        proxy_set_header Content-Type application/json;
        proxy_set_header {TENANT_HEADER} $qwen_tenant;
        # nginx leaves out a header whose value is empty.
        proxy_set_header Authorization "";
{headers}
        # An engine's answer may have such headers, and nginx would obey them. Only the relay's own redirect counts: it
        # takes away that of an engine.
        proxy_ignore_headers {_OTHER_ORDERS};
        proxy_buffering off;
        proxy_next_upstream off;
        proxy_connect_timeout 5s;
        proxy_read_timeout {settings.request_timeout_seconds}s;
{routes}"""


def _models() -> str:
    """MODELS. The program asks the router at the internal address and leaves out what the tenant may not use."""
    return f"""\
        location = {MODELS} {{
            content_by_lua_block {{ require("qwen.requests").models() }}
        }}
        location ~ ^{MODELS}/(?<name>.+)$ {{
            content_by_lua_block {{ require("qwen.requests").models(ngx.var.name) }}
        }}
        location = /-/models {{
            internal;
            proxy_ignore_headers {_ORDERS};
            proxy_pass http://router{MODELS};
        }}"""


def _route(path: str) -> str:
    # The address of the router is written out and the query is dropped: nothing of the client's spelling goes on.
    return f"""\
        location = {path} {{
            set $args "";
            # A client that leaves while its request waits frees its place.
            lua_check_client_abort on;
            access_by_lua_block {{ require("qwen.requests").admit() }}
            proxy_pass http://relay{path};
        }}"""


def _again(name: str, cut: str) -> str:
    # $uri is one of ROUTES.
    return f"""\
        location {name} {{
            lua_check_client_abort on;
            access_by_lua_block {{ require("qwen.requests").again({cut}) }}
            proxy_pass http://relay$uri;
        }}"""


def _health(path: str) -> str:
    return f"""\
        location = {path} {{
            access_by_lua_block {{ require("qwen.requests").health() }}
            set $args "";
            proxy_pass_request_body off;
            proxy_ignore_headers {_ORDERS};
            proxy_pass http://router/liveness;
        }}"""


def _inside(settings: ProxySettings, ident: str) -> str:
    """The server for Prometheus, the kubelet, the operator, and the other gateway pods."""
    return f"""\
    server {{
        listen {settings.host}:{settings.metrics_port};
        location = /metrics {{
            content_by_lua_block {{ require("qwen.metrics").page() }}
        }}
        # What waits for a model that sleeps. The operator reads it.
        location = /demand {{
            content_by_lua_block {{ require("qwen.demand").page() }}
        }}
        # What tenants have taken of their limits. The other gateway pods read it.
        location = {peers.PATH} {{
            content_by_lua_block {{ require("qwen.peers").page("{ident}") }}
        }}
        location = /liveness {{
            return 200 "ok\\n";
        }}
        location = /readiness {{
            content_by_lua_block {{
                if not require("qwen.state").settings.ready then
                    ngx.status = 503
                end
                ngx.say(ngx.status == 503 and "no valid keys or tenants yet" or "ok")
            }}
        }}
        location / {{
            return 404;
        }}
    }}"""
