"""Closes the administrative endpoints of SGLang to all but its pod, and keeps it from foreign code and from files.

SGLang has one port for everything: inference, probes, metrics, and calls that abort requests, release memory, replace
weights or print all settings. Its own keys do not separate them well: the gateway's router needs the key of an engine
to register it, and `/server_info` prints both keys. So there are no keys. Instead the engine's HTTP application gets a
middleware that serves other hosts a short list of paths, and everything only to its own pod: to SGLang itself, to the
runtime, and to `kubectl port-forward`, which all connect over the loopback interface.

A checkpoint may bring code. SGLang has --trust-remote-code for that, and does not keep to it: 0.5.23 also runs such
code for a model class that it does not have, for a processor that transformers cannot load, and for some quantizations.
So without that option, the functions of transformers that run the code of a checkpoint raise an error.

A request may name a file as its image, video or sound (see `media`).

The runtime puts its archive in the engine's PYTHONPATH, so that Python imports the archive's `sitecustomize` in every
process of the engine. It changes three modules when they are imported: SGLang's HTTP server, SGLang's requests, and one
of transformers. If one of SGLang's two is elsewhere, or if one of the three has another form than in the known
versions, the engine does not start.
"""

import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from qwen_runtime import media

SERVER_MODULE = "sglang.srt.entrypoints.http_server"
CODE_MODULE = "transformers.dynamic_module_utils"
# The first one imports the modules that the code names, and puts the cache of downloads, which a tenant may mount, on
# the path of modules. The second one runs the code.
CODE_FUNCTIONS = ("get_cached_module_file", "get_class_in_module")
TRUST = "--trust-remote-code"
# Tells the processes of the engine that its command has the option.
TRUST_VARIABLE = "QWEN_RUNTIME_TRUSTS_CODE"

# Not the whole of 127.0.0.0/8: the proxy of a service mesh connects from 127.0.0.6 for its remote clients.
LOOPBACK = frozenset({"127.0.0.1", "::1", "::ffff:127.0.0.1"})

OPEN_PATHS = frozenset(
    {
        # The probes of the kubelet and of the router. The metrics.
        *("/health", "/ready", "/metrics", "/metrics/"),
        # What the router reads to register an engine and to compare loads.
        *("/v1/models", "/model_info", "/get_model_info", "/version", "/v1/loads"),
        # Inference.
        *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"),
        *("/v1/messages/count_tokens", "/v1/rerank", "/v1/score", "/v1/classify", "/v1/audio/transcriptions"),
        *("/v1/tokenize", "/v1/detokenize", "/tokenize", "/detokenize", "/generate"),
    }
)
OPEN_BELOW = ("/v1/models/", "/v1/responses/")

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def is_open(kind: str, client: str | None, path: str) -> bool:
    """Whether to serve a connection. `kind` is the ASGI scope's type, `client` the address of the other side."""
    if kind == "lifespan" or client in LOOPBACK:
        return True
    return kind == "http" and (path in OPEN_PATHS or path.startswith(OPEN_BELOW))


class Guard:
    """ASGI middleware: 403 for requests that are not open."""

    def __init__(self, app: Application) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client, path = scope.get("client"), _route(scope)
        if is_open(scope["type"], client[0] if client else None, path):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await _refuse(path, send)
        else:
            await send({"type": "websocket.close", "code": 1008})


def _route(scope: Scope) -> str:
    """The path by which the application finds its endpoint. Like Starlette, it leaves out the root path.

    With --fastapi-root-path=/v1/models, the path of every request begins like an open one.
    """
    path, root = str(scope.get("path", "")), str(scope.get("root_path", ""))
    rest = path.removeprefix(root)
    return rest if rest.startswith("/") else path


async def _refuse(path: str, send: Send) -> None:
    message = f"{path[:200]} is only open inside the engine's pod; use kubectl port-forward"
    body = json.dumps({"error": {"message": message, "type": "forbidden", "code": 403}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _close(module: ModuleType) -> None:
    """Add the middleware to the application of the HTTP server."""
    add = getattr(getattr(module, "app", None), "add_middleware", None)
    if add is None:
        raise ImportError(f"{module.__name__} has no application that qwen-runtime can close to other pods")
    add(Guard)


def _refuse_code(module: ModuleType) -> None:
    """Replace the functions that run code of a checkpoint, unless the engine's command allows it."""
    if os.environ.get(TRUST_VARIABLE) == "1":
        return
    for name in CODE_FUNCTIONS:
        if not hasattr(module, name):
            raise ImportError(f"{module.__name__} has no {name} that qwen-runtime can keep from running code")
        setattr(module, name, _refused)


def _refused(*_: object, **__: object) -> NoReturn:
    raise RuntimeError(f"the checkpoint has code of its own, which the engine runs only with the option {TRUST}")


CHANGES: Mapping[str, Callable[[ModuleType], None]] = {
    SERVER_MODULE: _close,
    media.REQUEST_MODULE: media.close,
    CODE_MODULE: _refuse_code,
}
"""What to do with a module when it has been imported."""


PLACES: Mapping[str, str] = {
    SERVER_MODULE: "close its administrative endpoints to other pods",
    media.REQUEST_MODULE: "keep requests from naming files as their media",
}
"""What the guard cannot do where SGLang has no such module."""


class _GuardedLoader(importlib.machinery.SourceFileLoader):
    """Loads a module and changes it."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        CHANGES[module.__name__](module)


class Finder:
    """Finds only the modules of `CHANGES`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        if name not in CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.origin is None:
            return spec
        spec.loader = _GuardedLoader(name, spec.origin)
        return spec


def install() -> None:
    """Guard the modules that this process may import later."""
    sys.meta_path.insert(0, Finder())


def unknown_engine() -> str | None:
    """The problem if this Python has an SGLang with a module in which the guard would find nothing, else None."""
    for name, what in PLACES.items():
        package, _, module = name.partition(".")
        spec = importlib.util.find_spec(package)
        if spec is None:
            return None
        file = module.replace(".", "/") + ".py"
        if not any((Path(folder) / file).is_file() for folder in spec.submodule_search_locations or ()):
            return (
                f"this {package} has no {file}, so qwen-runtime cannot {what}; "
                "use a version of SGLang that this operator knows"
            )
    return None


def environment(current: Mapping[str, str], archive: str, command: Sequence[str]) -> dict[str, str]:
    """The environment of an engine with this command, whose processes import `sitecustomize` from `archive`."""
    others = [path for path in current.get("PYTHONPATH", "").split(":") if path]
    # With FORWARDED_ALLOW_IPS, the HTTP server would believe a client that claims to be the loopback interface.
    dropped = ("FORWARDED_ALLOW_IPS", TRUST_VARIABLE)
    kept = {name: value for name, value in current.items() if name not in dropped}
    trust = {TRUST_VARIABLE: "1"} if TRUST in command else {}
    return {**kept, **trust, "PYTHONPATH": ":".join([archive, *others])}
