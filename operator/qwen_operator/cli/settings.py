"""What the chart sets, from its values: the engine, pools and images that the operator would get from the chart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from qwen_operator.api.spec import EnvVar
from qwen_operator.checkpoints.hubs import Hub, is_address
from qwen_operator.cli import files
from qwen_operator.cli.files import InputError
from qwen_operator.hardware.pools import GpuPool, details
from qwen_operator.manifests.pods import RuntimeImage
from qwen_operator.planning.types import EngineDefaults

_ENGINE = {"image": "lmsysorg/sglang", "version": "0.5.23"}
_IMAGE = "localhost/qwen-operator"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the chart sets: engine, declared pools, the operator's own image."""

    engine: EngineDefaults
    pools: tuple[GpuPool, ...]
    image: RuntimeImage


def chart_settings(path: str | None) -> Settings:
    """The settings in a values file, over the chart's own; raises InputError."""
    documents = files.documents(path) if path else [{}]
    values = documents[0] if len(documents) == 1 else None
    if not isinstance(values, Mapping):
        raise InputError(f"{path}: must hold one mapping, the values of the chart")
    here = _Values(str(path), values)
    engine, image, hub = here.mapping("engine"), here.mapping("image"), here.mapping("hub")
    registry = image.text("registry")
    return Settings(
        engine=EngineDefaults(
            image=_rehosted(registry, engine.text("image") or _ENGINE["image"]),
            version=engine.text("version") or _ENGINE["version"],
            args=tuple(str(arg) for arg in engine.items("args")),
            env=tuple(_variable(f"{path}: engine.env[{index}]", one) for index, one in enumerate(engine.items("env"))),
            hub=_hub(hub),
            hub_url=_address(hub),
        ),
        pools=tuple(_pool(f"{path}: gpuPools[{index}]", one) for index, one in enumerate(here.items("gpuPools"))),
        image=RuntimeImage(
            _reference(image, registry),
            image.text("pullPolicy") or "IfNotPresent",
            tuple(_name(one) for one in here.items("imagePullSecrets")),
        ),
    )


def _hub(values: _Values) -> Hub:
    name = values.text("default") or Hub.HUGGING_FACE
    if name not in list(Hub):
        raise InputError(f"{values.path}: default is {name!r:.80}, it must be hf or modelscope")
    return Hub(name)


def _address(values: _Values) -> str:
    url = values.text("url")
    if url and not is_address(url):
        raise InputError(f"{values.path}: url is {url!r:.80}, it must be an address such as https://hub.example.org")
    return url.rstrip("/")


def _reference(image: _Values, registry: str) -> str:
    """The operator's own image, as the chart writes it; `reference` is how the operator's configuration has it."""
    if reference := image.text("reference"):
        return reference
    name = _rehosted(registry, image.text("repository") or _IMAGE)
    if digest := image.text("digest"):
        return f"{name}@{digest}"
    return f"{name}:{image.text('tag') or version('qwen-operator')}"


def _rehosted(registry: str, image: str) -> str:
    """The image from a mirror, which replaces its registry."""
    if not registry:
        return image
    host, _, rest = image.partition("/")
    path = rest if rest and ("." in host or ":" in host or host == "localhost") else image
    return f"{registry.removesuffix('/')}/{path}"


@dataclass(frozen=True, slots=True)
class _Values:
    """A mapping of the file; `path` names it in messages."""

    path: str
    content: Mapping[str, Any]

    def mapping(self, name: str) -> _Values:
        member = self.content.get(name) or {}
        if not isinstance(member, Mapping):
            raise InputError(f"{self.path}: {name} is {member!r:.80}, it must be a mapping")
        return _Values(f"{self.path}: {name}", member)

    def items(self, name: str) -> list[Any]:
        member = self.content.get(name) or []
        if not isinstance(member, list):
            raise InputError(f"{self.path}: {name} is {member!r:.80}, it must be a list")
        return member

    def text(self, name: str) -> str:
        member = self.content.get(name)
        if member is not None and not isinstance(member, str):
            raise InputError(f"{self.path}: {name} is {member!r:.80}, it must be a text: write it in quotes")
        return member or ""


def _name(secret: Any) -> str:
    return str(secret.get("name") if isinstance(secret, Mapping) else secret)


def _variable(path: str, item: Any) -> EnvVar:
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        raise InputError(f"{path}: is {item!r:.80}, it must be a mapping with a name")
    return EnvVar(item["name"], item.get("value"), item.get("valueFrom"))


def _pool(path: str, pool: Any) -> GpuPool:
    needed = {"name": str, "product": str, "memoryMiB": int, "gpusPerNode": int}
    for name, kind in needed.items():
        if not isinstance(pool, Mapping) or not isinstance(pool.get(name), kind):
            raise InputError(f"{path}: must have name, product, memoryMiB and gpusPerNode; {name} is missing or wrong")
    try:
        optional = details(path, pool)
    except ValueError as error:
        raise InputError(str(error)) from error
    return GpuPool(
        name=pool["name"],
        product=pool["product"],
        memory_mib=pool["memoryMiB"],
        gpus_per_node=pool["gpusPerNode"],
        node_selector=pool.get("nodeSelector") or {},
        tolerations=tuple(pool.get("tolerations") or ()),
        **optional,
    )
