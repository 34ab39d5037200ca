"""The kopf routing table: which resources kopf watches, and that the intake gets every event.

It uses only low-level event handlers. They write nothing to the objects, need no finalizer, and an error in one cannot
stop the next. The queue behind the intake repeats everything that must be retried.
"""

import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import aiohttp
import kopf

from qwen_operator.config.types import Config
from qwen_operator.controller.cache import WATCHED, keep
from qwen_operator.controller.enqueue import Intake
from qwen_operator.controller.resync import labels_of
from qwen_operator.kube import Manifest, Resource
from qwen_operator.kube.decoding import GuardedResponse


def routes(intake: Intake, relisted: Callable[[], None], resources: Iterable[Resource]) -> kopf.OperatorRegistry:
    """The registry of the handlers for these resources.

    `relisted` is called when a watch starts again. kopf then lists first and reports the listed objects as events
    without a type, but it does not report deletions since the previous watch.
    """
    registry = kopf.OperatorRegistry()
    for resource in resources:
        handler = cast("Any", event_handler(intake, relisted, resource))
        group, version, plural = resource.group, resource.version, resource.plural
        kopf.on.event(group, version, plural, id=plural, registry=registry)(handler)
    kopf.on.login(registry=registry)(login)
    return registry


def event_handler(
    intake: Intake, relisted: Callable[[], None], resource: Resource
) -> Callable[..., Coroutine[Any, Any, None]]:
    """What kopf calls for each event of this resource; see `routes`."""

    async def on_event(event: Mapping[str, Any], **_: Any) -> None:
        if event.get("type") is None:
            relisted()
        intake.event(resource, event.get("type"), dict(event["object"]))

    return on_event


@dataclass(frozen=True, kw_only=True)
class GuardedSession(kopf.AiohttpSession):
    """A session of kopf's whose answers `kube.decoding` guards: kopf's own decoder fails for a deeply nested object.

    Two sessions with the same credentials are equal. So kopf notices when a new login gives credentials that the API
    server has already rejected.
    """

    credentials: kopf.ConnectionInfo
    aiohttp_session: aiohttp.ClientSession = field(compare=False, repr=False)


class TrimmedResponse(GuardedResponse):
    """Of large objects, kopf gets only what the store keeps of them."""

    def keep(self, plural: str, item: Manifest) -> Manifest:
        return keep(plural, item)


async def login(**kwargs: Any) -> kopf.AiohttpSession | None:
    """A session for kopf. kopf calls this again after every 401, because tokens rotate."""
    info = credentials(**kwargs)
    if info is None:
        return None
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        proxy=info.proxy_url,
        trust_env=info.trust_env,
        response_class=TrimmedResponse,
    )
    return GuardedSession(
        server=info.server,
        priority=info.priority,
        default_namespace=info.default_namespace,
        expiration=info.expiration,
        credentials=info,
        aiohttp_session=session,
    )


def credentials(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """Credentials from KUBECONFIG if it is set, else from the pod's service account."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if os.environ.get("KUBECONFIG") or not host:
        return kopf.login_with_kubeconfig(**kwargs)
    account = kopf.login_with_service_account(**kwargs)
    if account is None:
        return None
    # Use the address, as `kube.client` does: the operator must not depend on the cluster's DNS.
    return replace(account, server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")


@dataclass(frozen=True)
class Backoffs(Iterable[float]):
    """The delays between attempts of a failing watch: endless, with jitter, growing to 30 seconds.

    The delays must not end, because kopf would then end the process. kopf takes a new iterator for every request.
    """

    random: Callable[[], float]

    def __iter__(self) -> Iterator[float]:
        delay = 1.0
        while True:
            yield delay * (0.5 + self.random() / 2)
            delay = min(30.0, delay * 2)


class NoDiffs(kopf.DiffBaseStorage):
    """Stores nothing. The event handlers need no diffs, and kopf's own storages would copy each object for them."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass


def operator_settings(config: Config, random: Callable[[], float]) -> kopf.OperatorSettings:
    """Settings for kopf as a mere watcher: no peering, no scanning, no Events, no annotations.

    `random` returns a number in [0, 1).
    """
    settings = kopf.OperatorSettings()
    settings.persistence.finalizer = "qwen-operator.dev/unused"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix="qwen-operator.dev", v1=False)
    settings.persistence.diffbase_storage = NoDiffs()
    settings.posting.enabled = False
    settings.posting.reporting_component = "qwen-operator"
    settings.posting.reporting_instance = config.pod_name
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.connect_timeout = 10
    settings.watching.reconnect_backoff = 1.0
    settings.watching.chunk_size = 100
    for resource in WATCHED:
        if labels_of(resource):
            settings.watching.label_selectors[resource.group, resource.version, resource.plural] = labels_of(resource)
    settings.networking.request_timeout = 60
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = Backoffs(random)
    settings.networking.enforce_retry_after = True
    settings.queueing.error_delays = (1, 2, 5, 10, 30)
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.process.ultimate_exiting_timeout = 25
    return settings
