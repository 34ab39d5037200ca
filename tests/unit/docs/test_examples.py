"""Every manifest of docs/examples is valid, and is a plan on hardware that many clusters have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from qwen_operator import cli
from qwen_operator.api.spec import parse
from tests.unit.checkpoints.configs import DENSE

FOLDER = Path(__file__).resolve().parents[3] / "docs/examples"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))
every_example = pytest.mark.parametrize("path", EXAMPLES, ids=[path.name for path in EXAMPLES])
UNPUBLISHED = "support-v3"
HARDWARE = "NVIDIA-H100-80GB-HBM3=8x2"


def _words(path: Path, folder: Path) -> list[str]:
    """The arguments of `plan` and `render`. What an inspection would read of unpublished files is given as a file."""
    spec = yaml.safe_load(path.read_text())["spec"]
    words = ["-f", str(path), "--gpu", HARDWARE]
    if spec["model"] != UNPUBLISHED:
        return words
    config = folder / "config.json"
    config.write_text(json.dumps(DENSE))
    return [*words, "--checkpoint-config", str(config)]


@every_example
def test_it_is_one_object_whose_comment_says_what_it_shows(path: Path) -> None:
    text = path.read_text()
    (manifest,) = yaml.safe_load_all(text)
    parse(manifest)
    assert text.startswith("# ")


@every_example
def test_it_fits(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *_words(path, tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("FITS")


@every_example
def test_its_objects_can_be_made(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = yaml.safe_load(path.read_text())["spec"]

    assert cli.main(["render", *_words(path, tmp_path)]) == 0

    made = list(yaml.safe_load_all(capsys.readouterr().out))
    engines = [one for one in made if one["kind"] == "Pod" and one["spec"]["containers"][0]["name"] == "engine"]
    nodes = 2 if path.name == "several-nodes.yaml" else 1
    assert len(engines) == spec.get("replicas", spec.get("scaling", {}).get("minReplicas", 1)) * nodes
    assert "ControllerRevision" in [one["kind"] for one in made]
