"""From the values of the chart to the settings that the operator gets from the chart."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from qwen_operator.cli import files
from qwen_operator.cli.files import InputError
from qwen_operator.config.plans import settings
from qwen_operator.config.section import ConfigError, Section
from qwen_operator.config.types import Settings

# The defaults in the chart's values.yaml. A test compares them.
_IMAGE = "localhost/qwen-operator"
_ENGINE_IMAGE = "lmsysorg/sglang"
_ENGINE_VERSION = "0.5.23"


def chart_settings(path: str | None) -> Settings:
    """The settings of a values file, with the chart's defaults. Raises InputError."""
    documents = files.documents(path) if path else [{}]
    values = documents[0] if len(documents) == 1 else None
    if not isinstance(values, Mapping):
        raise InputError(f"{path}: must hold one mapping, the values of the chart")
    try:
        return settings(rendered(values))
    except ConfigError as error:
        raise InputError(f"{path}: {error}") from error


def rendered(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the operator's configuration that plans depend on, as templates/operator-config.yaml renders it.

    The two forms differ only in images: values have the parts of an image and the registry of a mirror, and the
    configuration has references. Values that already have `image.reference` keep it. Raises ConfigError.
    """
    root = Section("", values)
    image, engine = root.section("image"), root.section("engine")
    registry = image.text("registry", "")
    return {
        "image": {**image.content, "reference": image.text("reference", "") or _reference(image, registry)},
        "engine": {
            **engine.content,
            "image": _rehosted(registry, engine.text("image", _ENGINE_IMAGE)),
            "version": engine.text("version", _ENGINE_VERSION),
        },
        "inspection": root.raw("inspection"),
        "hub": root.raw("hub"),
        "cache": root.raw("cache"),
        "outbound": root.raw("outbound"),
        "objectStore": root.raw("objectStore"),
        "gpuPools": root.raw("gpuPools"),
        "tenancy": root.raw("tenancy"),
        "imagePullSecrets": [_name(one) for one in root.items("imagePullSecrets")],
    }


def _reference(image: Section, registry: str) -> str:
    name = _rehosted(registry, image.text("repository", _IMAGE))
    if digest := image.text("digest", ""):
        return f"{name}@{digest}"
    return f"{name}:{image.text('tag', '') or version('qwen-operator')}"


def _rehosted(registry: str, image: str) -> str:
    """The image with its registry replaced by that of a mirror."""
    if not registry:
        return image
    host, _, rest = image.partition("/")
    path = rest if rest and ("." in host or ":" in host or host == "localhost") else image
    return f"{registry.removesuffix('/')}/{path}"


def _name(secret: Any) -> Any:
    return secret.get("name", secret) if isinstance(secret, Mapping) else secret
