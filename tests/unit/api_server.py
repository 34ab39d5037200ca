"""`FakeKube` behind HTTP on loopback: the requests of the operator's own client and of kopf, watches included."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from aiohttp import web

from qwen_operator.kube import ApiError, DeleteOptions, Manifest, NotFound, Resource
from tests.unit.fakes import ALL, FakeKube, matches

# kopf does not begin before it found these two in the API server's lists of resources.
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
DEFINITIONS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False)
SERVED = (*ALL, NAMESPACES, DEFINITIONS)
# The server sends an object of DEEP_LEVELS levels where this text stands.
DEEP = "very deep"
DEEP_LEVELS = 1100
# How often a watch looks for what is new.
POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Target:
    """What the path of a request names; `namespace` None: all of them, `name` "": the collection."""

    resource: Resource
    namespace: str | None = None
    name: str = ""
    subresource: str = ""


@dataclass
class ApiServer:
    """Answers for the objects of `kube`. `open` is cleared to let all requests wait.

    `watches` and `writers` are what a test looks at: each watch as its resource and label selector, and the
    User-Agent of everyone who wrote.
    """

    kube: FakeKube
    open: asyncio.Event = field(default_factory=asyncio.Event)
    watches: set[tuple[Resource, str]] = field(default_factory=set)
    writers: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.open.set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Every request comes here."""
        await self.open.wait()
        if request.headers.get("Authorization") != "Bearer token":
            return _status(ApiError(401, "Unauthorized", "no token"))
        try:
            discovered = discovery(request.path)
            if discovered is not None:
                return web.json_response(discovered)
            target = target_of(request.path)
            if "watch" in request.query:
                return await self._watch(request, target)
            answer = self._read if request.method == "GET" else self._write
            return web.json_response(text=_text(await answer(request, target)))
        except ApiError as error:
            return _status(error)

    async def _read(self, request: web.Request, target: Target) -> Manifest:
        if target.name:
            return await self.kube.get(target.resource, target.namespace, target.name)
        labels = request.query.get("labelSelector", "")
        items, version = await self.kube.list(target.resource, target.namespace, labels)
        kind, api_version = f"{target.resource.kind}List", target.resource.api_version
        return {"apiVersion": api_version, "kind": kind, "metadata": {"resourceVersion": version}, "items": items}

    async def _write(self, request: web.Request, target: Target) -> Manifest:
        self.writers.add(request.headers["User-Agent"])
        body = json.loads(await request.read())
        match request.method:
            case "POST":
                return await self.kube.create(target.resource, body)
            case "PUT":
                return await self.kube.replace(target.resource, body)
            case "DELETE":
                return await self._delete(target, body)
        if target.subresource == "status":
            return await self.kube.apply_status(target.resource, body, manager=request.query["fieldManager"])
        return await self.kube.patch(target.resource, target.namespace, target.name, body)

    async def _delete(self, target: Target, options: Manifest) -> Manifest:
        conditions = options["preconditions"]
        await self.kube.delete(
            target.resource,
            target.namespace,
            target.name,
            DeleteOptions(conditions["uid"], conditions.get("resourceVersion"), options.get("gracePeriodSeconds")),
        )
        return {"apiVersion": "v1", "kind": "Status", "status": "Success"}

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        labels = request.query.get("labelSelector", "")
        self.kube.check_right("watch", target.resource, target.namespace)
        self.watches.add((target.resource, labels))
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        # Who watches may go at any moment.
        with suppress(ConnectionError):
            await self._stream(target, labels, int(request.query["resourceVersion"]), response)
        return response

    async def _stream(self, target: Target, labels: str, since: int, response: web.StreamResponse) -> NoReturn:
        at = 0
        while True:
            events, at = self.kube.journal[at:], len(self.kube.journal)
            for kind, resource, manifest in events:
                meta = manifest["metadata"]
                inside = resource == target.resource and target.namespace in (None, meta.get("namespace"))
                if inside and int(meta["resourceVersion"]) > since:
                    # Leaving the selection is a deletion to who watches it.
                    event = {"type": kind if matches(manifest, labels) else "DELETED", "object": manifest}
                    await response.write(_text(event).encode() + b"\n")
            await asyncio.sleep(POLL_SECONDS)


def _text(value: Manifest) -> str:
    """JSON. Python cannot write a value as deep as the API server can, so DEEP stands for one."""
    return json.dumps(value).replace(f'"{DEEP}"', '{"a":' * DEEP_LEVELS + "{}" + "}" * DEEP_LEVELS)


def discovery(path: str) -> Manifest | None:
    """What the API server says of the resources that it serves; None for any other path."""
    groups = sorted({(resource.group, resource.version) for resource in SERVED if resource.group})
    versions = {f"/apis/{group}/{version}": (group, version) for group, version in groups} | {"/api/v1": ("", "v1")}
    if path == "/api":
        return {"versions": ["v1"]}
    if path == "/apis":
        named = [(group, {"groupVersion": f"{group}/{version}", "version": version}) for group, version in groups]
        return {"groups": [{"name": group, "versions": [one], "preferredVersion": one} for group, one in named]}
    if path not in versions:
        return None
    resources = [one for one in SERVED if (one.group, one.version) == versions[path]]
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    return {
        "resources": [
            {"name": one.plural, "singularName": "", "kind": one.kind, "namespaced": one.namespaced, "verbs": verbs}
            for one in resources
        ]
    }


def target_of(path: str) -> Target:
    """The inverse of `Resource.path`; raises NotFound."""
    for resource in SERVED:
        root = resource.path(None).removesuffix(resource.plural)
        if not path.startswith(root):
            continue
        parts, namespace = path.removeprefix(root).split("/"), None
        if resource.namespaced and parts[0] == "namespaces":
            namespace, parts = parts[1], parts[2:]
        if parts and parts[0] == resource.plural:
            return Target(resource, namespace, *parts[1:])
    raise NotFound(404, "NotFound", f"nothing is served at {path}")


def _status(error: ApiError) -> web.Response:
    body = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": error.status}
    return web.json_response(body | {"reason": error.reason, "message": error.message}, status=error.status)


@asynccontextmanager
async def serving(kube: FakeKube, kubeconfig: Path) -> AsyncIterator[ApiServer]:
    """Serve until the block ends; `kubeconfig` is written and leads there."""
    server = ApiServer(kube)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    _write_kubeconfig(kubeconfig, site.name)
    try:
        yield server
    finally:
        await runner.cleanup()


def _write_kubeconfig(path: Path, address: str) -> None:
    config = {
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {"token": "token"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }
    path.write_text(json.dumps(config))
