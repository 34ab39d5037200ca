"""A private repository, read by a pod: the same facts as from its files, for a few bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_operator import cli
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.fetch.heads import Heads
from qwen_operator.fetch.wire import Client, Remote, certificates
from qwen_runtime.inspect_checkpoint import examine
from tests.unit.fetch.hub import COMMIT, REPOSITORY, FileHub, serving
from tests.unit.fetch.test_fetch import model
from tests.unit.runtime.checkpoint import checkpoint, header


def read(hub: FileHub, folder: Path, **changes: Any) -> tuple[dict[str, Any], bool]:
    kind, token = changes.get("kind", Hub.HUGGING_FACE), changes.get("token", "")
    remote = Remote(kind, hub.address, REPOSITORY, changes.get("revision", "main"), token)
    context = certificates()
    folder.mkdir()
    return Heads(remote, lambda one: Client(one, context), sleep=lambda _seconds: None).report(folder)


@pytest.mark.parametrize("kind", list(Hub))
def test_the_facts_are_those_of_the_files(kind: Hub, tmp_path: Path) -> None:
    original = checkpoint(tmp_path / "original")
    files = {path.name: path.read_bytes() for path in original.iterdir()}
    with serving(FileHub(files, token="t")) as hub:
        report, complete = read(hub, tmp_path / "heads", kind=kind, token="t")
    assert complete, report
    assert report == examine(original)[0] | {"commit": COMMIT}
    facts = Checkpoint.from_inspection(report)
    assert (facts.commit, facts.source) == (COMMIT, "Inspection")


def test_the_weights_stay_on_the_hub(tmp_path: Path) -> None:
    with serving(FileHub(model(30_000_000))) as hub:
        report, complete = read(hub, tmp_path / "heads")
        assert complete, report
        assert hub.sent < 600_000
        shard = tmp_path / "heads" / "model-1.safetensors"
        assert shard.stat().st_size == len(hub.files["model-1.safetensors"])
        assert shard.stat().st_blocks * 512 < 600_000


def test_a_long_head_is_read_to_its_end(tmp_path: Path) -> None:
    names = {f"model.layers.{number}.{'x' * 100}.weight": 2 for number in range(3000)}
    files = model() | {"model-2.safetensors": header(names) + bytes(2 * len(names))}
    with serving(FileHub(files)) as hub:
        report, complete = read(hub, tmp_path / "heads")
    assert complete, report
    assert report["tensors"] == 3001


@pytest.mark.parametrize(
    ("faults", "changes", "reason"),
    [
        ({"token": "t"}, {"token": "wrong"}, "AuthRequired"),
        ({"gated": True}, {}, "GatedModel"),
        ({}, {"revision": "no-such-branch"}, "ModelNotFound"),
        ({"busy": 10**6}, {}, "HubUnreachable"),
        ({"missing": {"config.json"}}, {}, "ModelNotFound"),
    ],
)
def test_each_failure_has_its_reason(
    faults: dict[str, Any], changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with serving(FileHub(model(), **faults)) as hub:
        report, complete = read(hub, tmp_path / "heads", **changes)
    assert (complete, report["error"]["reason"]) == (False, reason)
    assert "wrong" not in report["error"]["message"]


def test_the_program_writes_what_the_operator_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_HUB_TOKEN", "t\n")
    output = tmp_path / "log"
    with serving(FileHub(model(), token="t")) as hub:
        options = ["--hub=hf", f"--hub-url={hub.address}/", f"--repository={REPOSITORY}", "--revision=main"]
        assert cli.main(["inspect-hub", *options, f"--output={output}"]) == 0
    assert Checkpoint.from_inspection(json.loads(output.read_bytes())).commit == COMMIT
