"""The chart's values as `plan` and `render` read them: the same images as the chart writes into its objects."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_operator.api.engine import EnvVar
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.cli.settings import chart_settings, rendered
from qwen_operator.config.load import load
from qwen_operator.config.types import Settings
from qwen_operator.manifests.pod_parts import RuntimeImage

VALUES = Path(__file__).resolve().parents[3] / "charts/qwen-operator/values.yaml"
TAG = version("qwen-operator")


def _settings(folder: Path, values: Any) -> Settings:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    return chart_settings(str(path))


def test_without_a_file_they_are_those_of_the_chart() -> None:
    assert chart_settings(None) == chart_settings(str(VALUES))


# What the operator needs besides, from the release and from other values.
FOR_THE_OPERATOR = {"networkPolicy", "gateway", "workers", "resyncSeconds", "recording", "servedNames", "arbiter"}


def test_values_become_the_configuration_that_the_template_renders() -> None:
    """The template names the members; with the chart's own values they have what the operator takes as default."""
    template = (VALUES.parent / "templates/operator-config.yaml").read_text()
    members = set(re.findall(r'^  "(\w+)" ', template, re.MULTILINE))
    values = yaml.safe_load(VALUES.read_text())
    mine = rendered(values)
    assert set(mine) | FOR_THE_OPERATOR == members
    assert set(mine["engine"]) == set(re.findall(r'^    "(\w+)" .*\$engine\b', template, re.MULTILINE))
    assert mine["image"]["reference"] == f"{values['image']['repository']}:{TAG}"
    rest = {name: values["operator"][name] for name in ("workers", "resyncSeconds", "recording", "arbiter")}
    config = load({}, yaml.safe_dump(mine | rest | {"gateway": {"auth": values["gateway"]["auth"]}}))
    assert Settings(config.image, config.engine, config.pools, config.pod, config.tenancy) == chart_settings(None)
    bare = load({}, yaml.safe_dump({"image": mine["image"], "engine": mine["engine"]}))
    assert bare == config


IMAGES = {
    "nothing said": ({}, RuntimeImage(f"localhost/qwen-operator:{TAG}"), "lmsysorg/sglang"),
    "tag": ({"image": {"repository": "a.io/b/q", "tag": "2"}}, RuntimeImage("a.io/b/q:2"), "lmsysorg/sglang"),
    "digest": (
        {"image": {"repository": "q", "tag": "2", "digest": "sha256:ab", "pullPolicy": "Always"}},
        RuntimeImage("q@sha256:ab", "Always"),
        "lmsysorg/sglang",
    ),
    "mirror": (
        {"image": {"registry": "mirror:5000/", "repository": "a.io/b/q"}, "engine": {"image": "docker.io/l/sglang:x"}},
        RuntimeImage(f"mirror:5000/b/q:{TAG}"),
        "mirror:5000/l/sglang:x",
    ),
    "mirror of a plain name": (
        {"image": {"registry": "mirror", "tag": "1"}},
        RuntimeImage("mirror/qwen-operator:1"),
        "mirror/lmsysorg/sglang",
    ),
    "secrets": (
        {"imagePullSecrets": [{"name": "one"}]},
        RuntimeImage(f"localhost/qwen-operator:{TAG}", pull_secrets=("one",)),
        "lmsysorg/sglang",
    ),
    "the operator's own file": (
        {"image": {"reference": "r/q:1"}, "imagePullSecrets": ["one"]},
        RuntimeImage("r/q:1", pull_secrets=("one",)),
        "lmsysorg/sglang",
    ),
}


@pytest.mark.parametrize(("values", "image", "engine"), IMAGES.values(), ids=IMAGES.keys())
def test_images(tmp_path: Path, values: dict[str, Any], image: RuntimeImage, engine: str) -> None:
    settings = _settings(tmp_path, values)
    assert (settings.image, settings.engine.image) == (image, engine)


def test_variables_and_the_hub(tmp_path: Path) -> None:
    values = {"engine": {"env": [{"name": "A", "value": "1"}]}, "hub": {"default": "modelscope", "url": "https://m/"}}
    engine = _settings(tmp_path, values).engine
    assert (engine.env, engine.hub, engine.hub_url) == ((EnvVar("A", "1"),), Hub.MODELSCOPE, "https://m")
