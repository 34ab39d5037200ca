"""Says which images and actions are not pinned by content: `python -m tools.pins`; exit code 1 with `--strict`.

A tag can be moved to other content. A digest of an image, and a commit of an action, cannot.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONTAINERFILE = ROOT / "runtime" / "Containerfile"
VALUES = ROOT / "charts" / "qwen-operator" / "values.yaml"
WORKFLOWS = ROOT / ".github" / "workflows"
_BASE = re.compile(r"^ARG BASE=(\S+)$", re.MULTILINE)
_FROM = re.compile(r"^FROM +(\S+)(?: +AS +(\S+))?", re.MULTILINE | re.IGNORECASE)
_DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
_COMMIT = re.compile(r".+@[0-9a-f]{40}")


def main() -> int:
    """Print one line for each name that can change its content."""
    parser = argparse.ArgumentParser(prog="python -m tools.pins", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--strict", action="store_true", help="exit with 1 if something is not pinned")
    strict = parser.parse_args().strict
    lines = [
        *unpinned_images(CONTAINERFILE.read_text(), yaml.safe_load(VALUES.read_text())),
        *(line for path in sorted(WORKFLOWS.glob("*.yaml")) for line in unpinned_actions(path.name, path.read_text())),
    ]
    sys.stdout.write("".join(f"{line}\n" for line in lines) or "all images and actions are pinned by content\n")
    return int(strict and bool(lines))


def unpinned_images(containerfile: str, values: dict[str, Any]) -> Iterator[str]:
    """The base image, and the engine's image in the chart's values."""
    base = _BASE.search(containerfile)
    if base is None or not _DIGEST.fullmatch(base[1]):
        name = base[1] if base else "?"
        yield f"runtime/Containerfile: BASE is {name}: it must end with @sha256:DIGEST"
    stages = {stage for _, stage in _FROM.findall(containerfile)}
    for image, _ in _FROM.findall(containerfile):
        if image != "${BASE}" and image not in stages and not _DIGEST.fullmatch(image):
            yield f"runtime/Containerfile: FROM {image}: it must end with @sha256:DIGEST"
    engine = str(values["engine"]["image"])
    if not _DIGEST.fullmatch(engine):
        yield f"values.yaml: engine.image is {engine}: it must end with @sha256:DIGEST"


def unpinned_actions(name: str, workflow: str) -> Iterator[str]:
    """The actions of a workflow that are named by a tag or a branch."""
    for job in yaml.safe_load(workflow)["jobs"].values():
        for step in job.get("steps", []):
            action = step.get("uses", "")
            if action and not action.startswith("./") and not _COMMIT.fullmatch(action):
                yield f"{name}: {action}: it must end with @ and the commit"


if __name__ == "__main__":
    sys.exit(main())
