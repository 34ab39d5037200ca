"""The client against an HTTP server on loopback: what goes over the wire, and what comes of each answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from qwen_operator.kube import (
    CONTROLLER_REVISIONS,
    LEASES,
    NODES,
    PODS,
    QWENDEPLOYMENTS,
    AlreadyExists,
    ApiError,
    Conflict,
    DeleteOptions,
    Forbidden,
    Gone,
    Invalid,
    KubeApi,
    NamespaceTerminating,
    NotFound,
    Resource,
    TooManyRequests,
    Unavailable,
)
from qwen_operator.kube.client import HttpKubeApi, connect, connect_as, encode

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers every request by `answer` and keeps what came."""

    def __init__(self) -> None:
        self.answer: Answer = self._nothing
        self.seen: list[tuple[str, str, bytes]] = []
        self.headers: list[dict[str, str]] = []
        self.targets: list[str] = []
        self.url = ""

    async def _nothing(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request.method, str(request.rel_url), await request.read()))
        self.headers.append(dict(request.headers))
        self.targets.append(request.raw_path)
        return await self.answer(request)

    def says(self, status: int, body: Any, **headers: str) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            return web.json_response(body, status=status, headers=headers)

        self.answer = answer


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    _kubeconfig(tmp_path, runner.addresses[0][1], "one")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    yield made
    await runner.cleanup()


def _kubeconfig(folder: Path, port: int, token: str) -> None:
    config = {
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }
    (folder / "config").write_text(json.dumps(config))


@pytest.fixture
async def api(server: Server) -> AsyncIterator[KubeApi]:
    client = await connect()
    yield client
    await client.aclose()


POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "team"}}


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, {"reason": "BadRequest", "message": "m"}, Invalid),
        (403, {"reason": "Forbidden", "message": "m"}, Forbidden),
        (403, {"details": {"causes": [{"reason": "NamespaceTerminating"}]}}, NamespaceTerminating),
        (404, {"reason": "NotFound", "message": "m"}, NotFound),
        (409, {"reason": "AlreadyExists", "message": "m"}, AlreadyExists),
        (409, {"reason": "Conflict", "message": "m"}, Conflict),
        (410, {"reason": "Expired", "message": "m"}, Gone),
        (422, {"reason": "Invalid", "message": "m"}, Invalid),
        (500, ["not an object"], Unavailable),
        (503, {"message": "m"}, Unavailable),
        (418, {}, ApiError),
    ],
)
async def test_every_refusal_is_an_error_of_its_own(
    server: Server, api: KubeApi, status: int, body: Any, error: type[ApiError]
) -> None:
    server.says(status, body)
    with pytest.raises(ApiError) as caught:
        await api.create(PODS, POD)
    assert type(caught.value) is error
    assert caught.value.status == status


async def test_a_busy_server_says_when_to_come_back(server: Server, api: KubeApi) -> None:
    server.says(429, {"reason": "TooManyRequests"}, **{"Retry-After": "7"})
    with pytest.raises(TooManyRequests) as caught:
        await api.get(PODS, "team", "p")
    assert caught.value.retry_after == 7


async def test_no_server_is_unavailable(server: Server, api: KubeApi) -> None:
    async def hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport
        request.transport.abort()
        return web.Response()

    server.answer = hang_up
    with pytest.raises(Unavailable):
        await api.create(PODS, POD)
    server.answer = _text
    with pytest.raises(Unavailable):
        await api.create(PODS, POD)


async def _text(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="not json")


async def test_each_call_is_the_request_that_the_api_server_knows(server: Server, api: KubeApi) -> None:
    await api.get(NODES, None, "n")
    await api.create(PODS, POD)
    await api.apply_status(QWENDEPLOYMENTS, POD, manager="me")
    await api.patch(PODS, "team", "p", {"a": 1})
    await api.patch(QWENDEPLOYMENTS, "team", "q", {"a": 1})
    await api.delete(PODS, "team", "p", DeleteOptions("u", "3", 0))
    group = "/apis/qwen-operator.dev/v1alpha1/namespaces/team/qwendeployments"
    assert [(method, url) for method, url, _ in server.seen] == [
        ("GET", "/api/v1/nodes/n"),
        ("POST", "/api/v1/namespaces/team/pods?fieldManager=qwen-operator"),
        ("PATCH", f"{group}/p/status?fieldManager=me&force=true"),
        ("PATCH", "/api/v1/namespaces/team/pods/p?fieldManager=qwen-operator"),
        ("PATCH", f"{group}/q?fieldManager=qwen-operator"),
        ("DELETE", "/api/v1/namespaces/team/pods/p"),
    ]
    assert [headers["Content-Type"] for headers in server.headers[2:5]] == [
        "application/apply-patch+yaml",
        "application/strategic-merge-patch+json",
        "application/merge-patch+json",
    ]
    options = json.loads(server.seen[-1][2])
    assert options["preconditions"] == {"uid": "u", "resourceVersion": "3"}
    assert options["gracePeriodSeconds"] == 0
    assert {
        headers["authorization" if "authorization" in headers else "Authorization"] for headers in server.headers
    } == {"Bearer one"}


async def test_a_list_is_read_page_by_page_and_its_items_know_what_they_are(server: Server, api: KubeApi) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        more = "continue" not in request.query
        meta = {"resourceVersion": "9", "continue": "a=b/c" if more else ""}
        return web.json_response({"metadata": meta, "items": [{"metadata": {"name": "1" if more else "2"}}]})

    server.answer = answer
    items, version = await api.list(CONTROLLER_REVISIONS, None, "x=y")
    assert [(item["apiVersion"], item["kind"], item["metadata"]["name"]) for item in items] == [
        ("apps/v1", "ControllerRevision", "1"),
        ("apps/v1", "ControllerRevision", "2"),
    ]
    assert version == "9"
    assert all(url.startswith("/apis/apps/v1/controllerrevisions?") for _, url, _ in server.seen)


def _watching(*chunks: bytes) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        return response

    return answer


def _line(kind: str, **item: Any) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


async def _watch(api: KubeApi, resource: Resource = PODS) -> list[tuple[str, Any]]:
    return [event async for event in api.watch(resource, "team", "5", "a=b")]


async def test_a_watch_is_read_line_by_line_however_it_is_cut(server: Server, api: KubeApi) -> None:
    big = _line("ADDED", metadata={"name": "x" * 300_000})
    server.answer = _watching(
        big[:7], big[7:200_000], big[200_000:] + b"\n" + _line("BOOKMARK", metadata={}), b'{"type": "ADD'
    )
    events = await _watch(api)
    assert [kind for kind, _ in events] == ["ADDED", "BOOKMARK"]
    assert len(events[0][1]["metadata"]["name"]) == 300_000
    assert "watch=true" in server.seen[0][1]
    assert "resourceVersion=5" in server.seen[0][1]
    assert "allowWatchBookmarks=true" in server.seen[0][1]


async def test_errors_within_a_watch_are_errors(server: Server, api: KubeApi) -> None:
    server.answer = _watching(_line("ERROR", code=410, reason="Expired", message="too old"))
    with pytest.raises(Gone):
        await _watch(api)
    server.answer = _watching(b"nonsense\n")
    with pytest.raises(Unavailable):
        await _watch(api)


async def test_after_a_401_the_credentials_are_read_again(
    server: Server, api: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        good = request.headers["Authorization"] == "Bearer two"
        return web.json_response({}, status=200 if good else 401)

    server.answer = answer
    with pytest.raises(Unavailable):
        await api.create(PODS, POD)
    assert len(server.seen) == 2
    config = json.loads((tmp_path / "config").read_text())
    config["users"][0]["user"]["token"] = "two"
    (tmp_path / "config").write_text(json.dumps(config))
    assert await api.create(PODS, POD) == {}
    assert await api.create(PODS, POD) == {}
    assert len(server.seen) == 5


async def test_no_cluster_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(ConnectionError, match="absent is not usable"):
        await connect()


async def test_passwords_that_the_user_has_for_the_same_host_are_not_mixed_in(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    api = await connect()
    await api.get(PODS, "team", "p")
    assert server.headers[0]["Authorization"] == "Bearer one"
    await api.aclose()


@pytest.mark.parametrize(
    ("environment", "proxied"),
    [({}, False), ({"http_proxy": "PROXY"}, True), ({"http_proxy": "PROXY", "no_proxy": "127.0.0.1"}, False)],
)
async def test_the_proxy_of_the_environment_is_used_unless_it_is_not_for_the_api_server(
    server: Server, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], proxied: bool
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("PROXY", server.url))
    api = await connect()
    await api.get(PODS, "team", "p")
    # A proxy is asked for the whole URL.
    assert server.targets == [f"{server.url if proxied else ''}/api/v1/namespaces/team/pods/p"]
    await api.aclose()


def test_bodies_are_encoded_as_the_api_server_itself_does() -> None:
    # Anything else would make a ControllerRevision's data look changed at its next patch.
    assert (
        encode({"b": [1, None, True], "a": "x<y> & \u2028ü"})
        == '{"a":"x\\u003cy\\u003e \\u0026 \\u2028ü","b":[1,null,true]}'.encode()
    )


async def test_a_replacement_carries_the_version_that_it_replaces(server: Server, api: KubeApi) -> None:
    lease = {"metadata": {"name": "l", "namespace": "n", "resourceVersion": "7"}, "spec": {}}
    await api.replace(LEASES, lease)
    method, url, body = server.seen[0]
    assert method == "PUT"
    assert url == "/apis/coordination.k8s.io/v1/namespaces/n/leases/l?fieldManager=qwen-operator"
    assert json.loads(body) == lease


async def test_any_path_is_read_up_to_a_limit(server: Server, api: KubeApi) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="0123456789" * 1000)

    server.answer = answer
    assert isinstance(api, HttpKubeApi)
    assert await api.read("/api/v1/namespaces/a/pods/p/log", {"tailLines": "5"}, 25) == b"0123456789" * 2 + b"01234"
    assert server.seen[-1][:2] == ("GET", "/api/v1/namespaces/a/pods/p/log?tailLines=5")


async def test_a_dry_run_says_that_it_is_one(server: Server, api: KubeApi) -> None:
    assert isinstance(api, HttpKubeApi)
    await api.try_create(PODS, {"metadata": {"name": "p", "namespace": "a"}})
    assert server.seen[-1][:2] == ("POST", "/api/v1/namespaces/a/pods?dryRun=All")


async def test_the_error_of_a_proxied_pod_has_its_text(server: Server, api: KubeApi) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=503, text="Error trying to reach service: 'dial tcp'\x1b[0m")

    server.answer = answer
    assert isinstance(api, HttpKubeApi)
    with pytest.raises(Unavailable) as error:
        await api.read("/x", {}, 100)
    assert (error.value.reason, error.value.message) == ("HTTP503", "Error trying to reach service: 'dial tcp' [0m")


async def test_a_file_and_a_context_can_be_chosen(server: Server, tmp_path: Path) -> None:
    _kubeconfig(tmp_path, int(server.url.rpartition(":")[2]), "chosen")
    (tmp_path / "config").rename(tmp_path / "other")
    api = await connect_as(str(tmp_path / "other"), "c", user_agent="test")
    try:
        await api.list(NODES, None)
    finally:
        await api.aclose()
    assert server.headers[-1]["Authorization"] == "Bearer chosen"
    with pytest.raises(ConnectionError):
        await connect_as(str(tmp_path / "other"), "none", user_agent="test")
