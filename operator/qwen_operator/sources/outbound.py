"""What a container needs to reach a hub or a store: the chart's proxy and its certificates. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from qwen_operator.api.engine import EnvVar
from qwen_operator.api.spec import Spec
from qwen_operator.planning.types import EngineSource, Outbound

_VOLUME = "qwen-ca"
"""Its name, with a number if the user has a volume of this name. No spec is refused for it: most charts have none."""
_MOUNT = "/etc/qwen-ca"
# SGLang asks itself over HTTP while it starts.
_OWN_HOST = "localhost,127.0.0.1,::1"
# Python's ssl and httpx, requests (which both hubs' clients use), curl.
_BUNDLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def reaching(source: EngineSource, spec: Spec, outbound: Outbound) -> EngineSource:
    """The source with the settings for the container that connects to others; unchanged if none does."""
    if outbound == Outbound(no_proxy=outbound.no_proxy, key=outbound.key):
        return source
    if not (source.fetch or source.downloads or source.inspection or source.adapter_fetches):
        return source
    env = _environment(outbound)
    bundle, name = bool(outbound.config_map), _free([str(volume.get("name")) for volume in spec.pod.volumes])
    volumes = ({"name": name, "configMap": {"name": outbound.config_map}},) if bundle else ()
    mounts = ({"name": name, "mountPath": _MOUNT, "readOnly": True},) if bundle else ()
    changed = replace(source, volumes=(*source.volumes, *volumes))
    if source.fetch is not None:
        fetch = source.fetch
        return replace(changed, fetch=replace(fetch, env=(*fetch.env, *env), mounts=(*fetch.mounts, *mounts)))
    if source.adapter_fetches:
        changed = replace(changed, fetch_env=env, fetch_mounts=mounts)
    if not (source.downloads or source.inspection):
        return changed
    return replace(changed, env=(*source.env, *env), mounts=(*source.mounts, *mounts))


def _free(taken: Sequence[str]) -> str:
    """A name for the volume that the user has not taken."""
    names = (_VOLUME, *(f"{_VOLUME}-{number}" for number in range(len(taken))))
    return next(name for name in names if name not in taken)


def _environment(outbound: Outbound) -> tuple[EnvVar, ...]:
    proxies = {}
    if outbound.proxy:
        without = ",".join(part for part in (_OWN_HOST, outbound.no_proxy) if part)
        proxies = {"HTTP_PROXY": outbound.proxy, "HTTPS_PROXY": outbound.proxy, "NO_PROXY": without}
    bundles = dict.fromkeys(_BUNDLES, f"{_MOUNT}/{outbound.key}") if outbound.config_map else {}
    return tuple(EnvVar(name, value) for name, value in (proxies | bundles).items())
