"""A private repository, read by a pod: the same facts as from its files, for a few bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_operator import cli
from qwen_operator.checkpoints import records
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.fetch import heads
from qwen_operator.fetch.files import RemoteFile
from qwen_operator.fetch.heads import Heads
from qwen_operator.fetch.wire import Client, Remote, certificates
from qwen_runtime.inspect_checkpoint import examine
from tests.unit.fetch.hub import COMMIT, REPOSITORY, FileHub, serving
from tests.unit.fetch.test_fetch import model
from tests.unit.fetch.test_wire import answering
from tests.unit.runtime.checkpoint import checkpoint, header
from tests.unit.runtime.gguf_files import qwen2


def read(hub: FileHub, folder: Path, **changes: Any) -> tuple[dict[str, Any], bool]:
    kind, token = changes.get("kind", Hub.HUGGING_FACE), changes.get("token", "")
    remote = Remote(kind, hub.address, REPOSITORY, changes.get("revision", "main"), token, changes.get("file", ""))
    context = certificates()
    folder.mkdir()
    return Heads(remote, lambda one: Client(one, context), sleep=lambda _seconds: None).report(folder)


@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize("kind", list(Hub))
def test_the_facts_are_those_of_the_files(kind: Hub, sizes: bool, tmp_path: Path) -> None:
    original = checkpoint(tmp_path / "original")
    files = {path.name: path.read_bytes() for path in original.iterdir()}
    with serving(FileHub(files, token="t", unsized=set() if sizes else set(files))) as hub:
        report, complete = read(hub, tmp_path / "heads", kind=kind, token="t")
    assert complete, report
    assert report == examine(original)[0] | {"commit": COMMIT}
    facts = records.from_inspection(report)
    assert (facts.commit, facts.source) == (COMMIT, "Inspection")


def test_the_weights_stay_on_the_hub(tmp_path: Path) -> None:
    with serving(FileHub(model(30_000_000))) as hub:
        report, complete = read(hub, tmp_path / "heads")
        assert complete, report
        assert hub.sent < 600_000
        shard = tmp_path / "heads" / "model-1.safetensors"
        assert shard.stat().st_size == len(hub.files["model-1.safetensors"])
        assert shard.stat().st_blocks * 512 < 600_000


@pytest.mark.parametrize("split", [False, True])
def test_of_a_gguf_file_only_the_headers_are_read(split: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_FIRST_BYTES", 1000)
    monkeypatch.setattr(heads, "GGUF_BEGINNINGS", (4000, 40_000))
    file = qwen2("F16")
    parts = file.split(1, 9, name="q4/a") if split else {"q4/a.gguf": file.bytes()}
    first = next(iter(parts))
    with serving(FileHub(model() | parts, token="t")) as hub:
        report, complete = read(hub, tmp_path / "heads", token="t", file=first)
        assert complete, report
        assert hub.sent < 150_000 < sum(map(len, parts.values()))
    original = tmp_path / "original"
    original.mkdir()
    for name, content in parts.items():
        (original / name.removeprefix("q4/")).write_bytes(content)
    assert report == examine(original / first.removeprefix("q4/"), to_join=True)[0] | {"commit": COMMIT}


def test_a_gguf_file_that_is_cut_off_is_told_before_it_is_downloaded(tmp_path: Path) -> None:
    for number, content in enumerate((qwen2().bytes()[:-1], qwen2().bytes()[:500])):
        with serving(FileHub(model() | {"a.gguf": content})) as hub:
            report, complete = read(hub, tmp_path / str(number), file="a.gguf")
        assert (complete, report["error"]["reason"]) == (False, "TruncatedWeights")
        assert report["error"]["message"].startswith("a.gguf is cut off")


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
    assert records.from_inspection(json.loads(output.read_bytes())).commit == COMMIT


def test_only_what_the_inspection_reads_is_loaded_and_not_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {f"extra-{number}.json": bytes(100_000) for number in range(30)}
    with serving(FileHub(model() | many)) as hub:
        report, complete = read(hub, tmp_path / "heads")
        assert complete, report
        assert not [path for path in hub.asked if "extra" in path]
        on_disk = sum(path.stat().st_blocks * 512 for path in (tmp_path / "heads").rglob("*") if path.is_file())
        assert on_disk < 50_000
        monkeypatch.setattr(heads, "MOST_BYTES", 300)
        report, complete = read(hub, tmp_path / "again")
    assert (complete, report["error"]["reason"]) == (False, "InvalidConfig")
    assert "have more than 300 bytes" in report["error"]["message"]


def test_files_that_no_disk_can_have_are_reported(tmp_path: Path) -> None:
    with serving(FileHub(model() | {"a.json": b"{}", "a.json/b.json": b"{}"})) as hub:
        report, complete = read(hub, tmp_path / "heads")
    assert (complete, report["error"]["reason"]) == (False, "InvalidConfig")
    assert "cannot be written for the inspection: File exists" in report["error"]["message"]


@pytest.mark.parametrize(
    "broken", [b"Transfer-Encoding: chunked\r\n\r\nno number\r\n", b"Content-Length: 9\r\n\r\ncut"]
)
def test_a_head_that_breaks_off_is_asked_for_again(broken: bytes, tmp_path: Path) -> None:
    good = b"HTTP/1.1 206 Partial\r\nContent-Length: 9\r\n\r\n" + bytes(9)
    with answering(b"HTTP/1.1 206 Partial\r\n" + broken, good) as (base, asked):
        remote, context = Remote(Hub.HUGGING_FACE, base, REPOSITORY, COMMIT), certificates()
        reader = heads.Heads(remote, lambda one: Client(one, context), sleep=lambda _seconds: None)
        file = RemoteFile("model.safetensors", 9)
        client = Client(remote, context)
        assert reader._patient(lambda: reader._range(client, f"{base}/a", file, 9)) == bytes(9)
        client.close()
    assert len(asked) == 2
