"""`KubeApi` over the asyncio part of the official client.

The official package does the hard parts: kubeconfig and in-cluster configuration, TLS, and tokens that rotate.
Requests use plain paths and dicts. The package's typed models reject objects with a missing field. Its dynamic client
needs discovery requests and a writable cache directory.
"""

import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import KUBE_CONFIG_DEFAULT_LOCATION, ConfigException, load_incluster_config, load_kube_config

from qwen_operator import objects, untrusted
from qwen_operator.kube.api import (
    DeleteOptions,
    KubeApi,
    Manifest,
    Resource,
    Unavailable,
    error_from_status,
)
from qwen_operator.kube.decoding import Keep, decode, decode_list, keep_all, lines
from qwen_operator.objects import FIELD_MANAGER
from qwen_operator.untrusted import clean

REQUEST_SECONDS = 15.0
WATCH_SECONDS = 300
# The API server sends a bookmark about once a minute. A stream that is silent for longer is dead, even if TCP is not.
WATCH_SILENCE_SECONDS = 90.0
# A page of a list may have hundreds of megabytes, if every object is as large as the API server allows.
LIST_CHUNK = 100
_PAGE_TIMEOUT = aiohttp.ClientTimeout(total=60.0, sock_connect=REQUEST_SECONDS, sock_read=REQUEST_SECONDS)
MOST_ERROR_BYTES = 1_000_000
_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=REQUEST_SECONDS)

Observer = Callable[[str, str, int, float], None]
"""Called once per request with verb, plural, HTTP status (0: no answer) and seconds."""


async def connect(
    *, user_agent: str = FIELD_MANAGER, observer: Observer | None = None, keep: Keep = keep_all
) -> KubeApi:
    """Return a client for the cluster of the pod's service account, or else of KUBECONFIG or ~/.kube/config.

    Lists and watches return of each object what `keep` keeps. Raises ConnectionError if neither is usable.
    """
    return await _connect(user_agent, observer, _configuration, keep)


async def connect_as(kubeconfig: str, context: str, *, user_agent: str) -> "HttpKubeApi":
    """Like `connect`, for one file and one of its contexts. "" stands for the usual one.

    Raises ConnectionError if they are not usable.
    """
    return await _connect(user_agent, None, partial(_configuration, kubeconfig, context))


async def _connect(
    user_agent: str, observer: Observer | None, configure: Callable[[], Awaitable[Any]], keep: Keep = keep_all
) -> "HttpKubeApi":
    client = ApiClient(configuration=await configure())
    client.user_agent = user_agent
    return HttpKubeApi(client, observer or (lambda _verb, _plural, _status, _seconds: None), configure, keep)


async def _configuration(kubeconfig: str = "", context: str = "") -> Any:
    configuration = Configuration()
    if os.environ.get("KUBERNETES_SERVICE_HOST") and not (os.environ.get("KUBECONFIG") or kubeconfig or context):
        load_incluster_config(client_configuration=configuration)
        return configuration
    path = kubeconfig or os.environ.get("KUBECONFIG") or KUBE_CONFIG_DEFAULT_LOCATION
    try:
        await load_kube_config(
            config_file=path, context=context or None, client_configuration=configuration, persist_config=False
        )
    except (ConfigException, OSError) as error:
        raise ConnectionError(
            f"there is no cluster: this is not a pod, and the kubeconfig {path} is not usable: {error}"
        ) from error
    return configuration


class HttpKubeApi:
    """See `KubeApi`. `connect` makes it.

    The official client gives addresses, credentials and TLS. The HTTP session is separate, because the client encodes
    bodies in a form that the API server does not keep (see `encode`).
    """

    def __init__(
        self,
        client: ApiClient,
        observer: Observer,
        configure: Callable[[], Awaitable[Any]],
        keep: Keep = keep_all,
    ) -> None:
        self._client = client
        self._observer = observer
        self._configure = configure
        self._keep = keep
        self._proxy = _proxy(client.configuration)
        # Not trust_env: it reads ~/.netrc in a thread for every request, and fails if it finds the host there.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=client.rest_client.ssl_context),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=2**18,
        )

    async def aclose(self) -> None:
        await self._session.close()
        await self._client.close()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        return await self._request("GET", resource, resource.path(namespace, name), _Request())

    async def list(
        self, resource: Resource, namespace: str | None, labels: str = "", fields: str = ""
    ) -> tuple[list[Manifest], str]:
        query = {"limit": str(LIST_CHUNK)}
        if labels:
            query["labelSelector"] = labels
        if fields:
            query["fieldSelector"] = fields
        items: list[Manifest] = []
        while True:
            page = await self._page(resource, resource.path(namespace), _Request(query, timeout=_PAGE_TIMEOUT))
            # Items of a built-in kind lack apiVersion and kind. Items of a custom resource have them.
            items += [
                {"apiVersion": resource.api_version, "kind": resource.kind, **item}
                for item in objects.members(page, "items")
            ]
            meta = objects.mapping(page, "metadata")
            if not meta.get("continue"):
                return items, str(meta.get("resourceVersion", ""))
            query["continue"] = meta["continue"]

    async def watch(
        self, resource: Resource, namespace: str | None, resource_version: str, labels: str = ""
    ) -> AsyncIterator[tuple[str, Manifest]]:
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        if labels:
            query["labelSelector"] = labels
        timeout = aiohttp.ClientTimeout(
            total=WATCH_SECONDS + 30, sock_connect=REQUEST_SECONDS, sock_read=WATCH_SILENCE_SECONDS
        )
        response = await self._send("GET", resource, resource.path(namespace), _Request(query, timeout=timeout))
        try:
            async for line in lines(response.content):
                kind, item = _event(line)
                if kind == "ERROR":
                    raise error_from_status(untrusted.whole(item.get("code"), 400, 599, 500), item)
                yield kind, self._keep(resource.plural, item) if objects.malformed(item) is None else item
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(0, "WatchBroken", f"{resource.plural}: {_text(error)}") from error
        finally:
            response.close()

    async def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        return await self._request(
            "POST",
            resource,
            resource.path(manifest["metadata"].get("namespace")),
            _Request({"fieldManager": FIELD_MANAGER}, manifest),
        )

    async def replace(self, resource: Resource, manifest: Manifest) -> Manifest:
        meta = manifest["metadata"]
        return await self._request(
            "PUT",
            resource,
            resource.path(meta.get("namespace"), meta["name"]),
            _Request({"fieldManager": FIELD_MANAGER}, manifest),
        )

    async def apply_status(self, resource: Resource, manifest: Manifest, *, manager: str) -> Manifest:
        meta = manifest["metadata"]
        return await self._request(
            "PATCH",
            resource,
            resource.path(meta.get("namespace"), meta["name"], "status"),
            # JSON is YAML.
            _Request({"fieldManager": manager, "force": "true"}, manifest, "application/apply-patch+yaml"),
        )

    async def patch(self, resource: Resource, namespace: str | None, name: str, patch: Manifest) -> Manifest:
        # Custom resources do not support strategic merge patches.
        form = "merge" if "." in resource.group else "strategic-merge"
        return await self._request(
            "PATCH",
            resource,
            resource.path(namespace, name),
            _Request({"fieldManager": FIELD_MANAGER}, patch, f"application/{form}-patch+json"),
        )

    async def delete(self, resource: Resource, namespace: str | None, name: str, options: DeleteOptions) -> None:
        request = _Request(body=options.body())
        await self._request("DELETE", resource, resource.path(namespace, name), request)

    async def read(self, path: str, query: Mapping[str, str], most_bytes: int) -> bytes:
        """Return what the API server answers to a GET of any path, for example a log or the answer of a proxied pod.

        At most `most_bytes`; the rest is left out. Raises ApiError.
        """
        resource = Resource("", "", path.rpartition("/")[2], "")
        response = await self._send("GET", resource, path, _Request(query, accept="application/json, */*"))
        try:
            return await _first_bytes(response, most_bytes)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(0, "AnswerLost", f"GET {path}: {_text(error)}") from error
        finally:
            response.close()

    async def try_create(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Let the API server check and admit an object without storing it. Raises ApiError if it rejects the object."""
        path = resource.path(manifest["metadata"].get("namespace"))
        return await self._request("POST", resource, path, _Request({"dryRun": "All"}, manifest))

    async def _page(self, resource: Resource, path: str, request: "_Request") -> Manifest:
        response = await self._send("GET", resource, path, request)
        try:
            page = await decode_list(response.content, resource.plural, self._keep)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unavailable(0, "AnswerLost", f"GET {path}: {_text(error)}") from error
        finally:
            response.release()
        if not isinstance(page, dict):
            raise Unavailable(0, "AnswerLost", f"GET {path}: the answer is not a JSON object")
        return page

    async def _request(self, method: str, resource: Resource, path: str, request: "_Request") -> Manifest:
        response = await self._send(method, resource, path, request)
        try:
            content = decode(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unavailable(0, "AnswerLost", f"{method} {path}: {_text(error)}") from error
        if not isinstance(content, dict):
            raise Unavailable(0, "AnswerLost", f"{method} {path}: the answer is not a JSON object")
        return content

    async def _send(self, method: str, resource: Resource, path: str, request: "_Request") -> aiohttp.ClientResponse:
        """Send a request, and once more with fresh credentials after a 401. Raises ApiError for a status >= 400."""
        response = await self._send_once(method, resource, path, request)
        if response.status == 401:
            response.release()
            await self._reload()
            response = await self._send_once(method, resource, path, request)
        if response.status < 400:
            return response
        raise error_from_status(
            response.status, await _error_body(response), _seconds(response.headers.get("Retry-After"))
        )

    async def _send_once(
        self, method: str, resource: Resource, path: str, request: "_Request"
    ) -> aiohttp.ClientResponse:
        start, status = time.monotonic(), 0
        try:
            # param_serialize also reads the service account's token again, which rotates every hour.
            _, url, headers, _, _ = await self._client.param_serialize(
                method,
                path,
                header_params={"Accept": request.accept, "Content-Type": request.content_type},
                auth_settings=["BearerToken"],
            )
            configuration = self._client.configuration
            response = await self._session.request(
                method,
                url,
                params=request.query,
                headers=headers,
                data=None if request.body is None else encode(request.body),
                timeout=request.timeout,
                proxy=self._proxy,
                server_hostname=configuration.tls_server_name,
            )
            status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError, ConfigException) as error:
            raise Unavailable(0, "NoAnswer", f"{method} {path}: {_text(error)}") from error
        finally:
            self._observer(
                "watch" if "watch" in request.query else method.lower(),
                resource.plural,
                status,
                time.monotonic() - start,
            )
        return response

    async def _reload(self) -> None:
        """Read the credentials from the configuration again: tokens from exec plugins and files expire too."""
        try:
            fresh = await self._configure()
        except (ConnectionError, ConfigException, OSError) as error:
            raise Unavailable(401, "Unauthorized", f"cannot read the credentials again: {error}") from error
        self._client.configuration.api_key = fresh.api_key
        self._client.configuration.refresh_api_key_hook = fresh.refresh_api_key_hook


@dataclass(frozen=True, slots=True)
class _Request:
    """The parts of a request except method and path."""

    query: Mapping[str, str] = field(default_factory=dict)
    body: Manifest | None = None
    content_type: str = "application/json"
    accept: str = "application/json"
    timeout: aiohttp.ClientTimeout = _REQUEST_TIMEOUT


async def _error_body(response: aiohttp.ClientResponse) -> Manifest:
    """The `Status` object of an error. If it has none, for example from a proxied pod, its text is the message."""
    try:
        raw = await _first_bytes(response, MOST_ERROR_BYTES)
        body = decode(raw)
    except ValueError:
        body = {}
    except (aiohttp.ClientError, TimeoutError, OSError):
        return {}
    known = body if isinstance(body, dict) else {}
    return {**known, "message": known.get("message") or clean(raw.decode("utf-8", "replace"), 300)}


async def _first_bytes(response: aiohttp.ClientResponse, most: int) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) >= most:
            break
    return bytes(content[:most])


def _proxy(configuration: Configuration) -> str | None:
    """The kubeconfig's proxy-url, or else the proxy for the API server from the variables *_PROXY and NO_PROXY."""
    if configuration.proxy:
        return str(configuration.proxy)
    server = urlsplit(configuration.host)
    return None if proxy_bypass(server.hostname or "") else getproxies().get(server.scheme)


def encode(body: Manifest) -> bytes:
    """JSON in the API server's own form: no white space, sorted keys, &, <, > and two line separators escaped.

    The API server compares the data of a ControllerRevision byte by byte with its own encoding. In any other form, the
    data counts as changed. Then the API server rejects every later patch, even of a label: from `kubectl`, and from the
    garbage collector after a deletion with `--cascade=orphan`, which then never ends.
    """
    text = json.dumps(body, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    return text.translate(_ESCAPED).encode()


_ESCAPED = {ord(char): f"\\u{ord(char):04x}" for char in "&<>\u2028\u2029"}


def _event(line: bytes) -> tuple[str, Manifest]:
    try:
        event = decode(line)
        return str(event["type"]), dict(event["object"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable(0, "WatchBroken", f"cannot read a watch event: {error}") from error


def _text(error: BaseException) -> str:
    """The error's text, or its class name: time-outs have no text."""
    return str(error) or type(error).__name__


def _seconds(header: str | None) -> float | None:
    try:
        return float(header) if header else None
    except ValueError:
        return None
