"""What the documentation names exists: fields, metrics, labels and make targets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qwen_operator.api.crd import GROUP, VERSION
from qwen_operator.api.spec import REPLAN_ANNOTATION
from qwen_operator.manifests import names
from tools.api_reference import all_fields
from tools.site import OUTSIDE

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted({*(ROOT / "docs").rglob("*.md"), *(ROOT / source for source in OUTSIDE)})
every_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])

FIELDS = {field.path.replace("[]", "") for field in all_fields()}
FILES = [path for path in sorted((ROOT / "operator/qwen_operator").rglob("*")) if path.suffix in (".py", ".lua")]
SOURCE = "".join(path.read_text() for path in FILES)
METRICS = set(re.findall(r'"(qwen_(?:deployment|operator|gateway)_[a-z_]+)"', SOURCE))
KEYS = {value for value in vars(names).values() if str(value).startswith(f"{GROUP}/")} | {REPLAN_ANNOTATION}
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _code(page: Path) -> list[str]:
    """What stands in backticks within a line."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))


@every_page
def test_fields_exist(page: Path) -> None:
    mentioned = {path for code in _code(page) for path in re.findall(r"^(?:spec|status)(?:\.[a-zA-Z]+)+", code)}
    # What is below these is Kubernetes' own.
    free = ("spec.pod.tolerations.", "spec.pod.securityContext.")
    assert sorted(path for path in mentioned - FIELDS if not path.startswith(free)) == []


@every_page
def test_metrics_exist(page: Path) -> None:
    mentioned = {name for code in _code(page) for name in re.findall(r"^qwen_[a-z_]+[a-z](?=[{]|$)", code)}
    assert sorted(name for name in mentioned if name.removesuffix("_total") not in METRICS) == []


@every_page
def test_labels_and_annotations_exist(page: Path) -> None:
    mentioned = {key for code in _code(page) for key in re.findall(rf"{GROUP}/[a-z0-9-]+", code)}
    assert sorted(mentioned - KEYS - {f"{GROUP}/{VERSION}"}) == []


@every_page
def test_make_targets_exist(page: Path) -> None:
    mentioned = {target for code in _code(page) for target in re.findall(r"^make ([a-z][a-z0-9-]*)", code)}
    in_blocks = re.findall(r"^make ([a-z][a-z0-9-]*)", page.read_text(), re.MULTILINE)
    assert sorted((mentioned | set(in_blocks)) - TARGETS) == []
