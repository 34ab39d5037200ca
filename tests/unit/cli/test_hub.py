"""`plan --hub`: what the catalog does not have, from a hub on loopback; and nothing is asked without the option."""

from __future__ import annotations

import asyncio
import json
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from qwen_operator import cli
from qwen_operator.planning.types import EngineDefaults
from tests.unit.checkpoints.configs import DENSE
from tests.unit.hubs.hub import COMMIT, FakeHub, repository, serving

H100 = ("--gpu", "NVIDIA-H100-80GB-HBM3=8x1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that a program of its own event loop can ask."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    fake, ready, loop = (
        repository(DENSE, {"model.safetensors": 927_980_000}),
        threading.Event(),
        asyncio.new_event_loop(),
    )
    done = asyncio.Event()

    async def serve() -> None:
        async with serving(fake):
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    yield fake
    loop.call_soon_threadsafe(done.set)
    thread.join(10)
    loop.close()


def _values(tmp_path: Path, hub: FakeHub) -> str:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump({"hub": {"default": "hf", "url": hub.address}}))
    return str(path)


def test_a_model_of_a_hub(hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", "Qwen/Test", "--config", _values(tmp_path, hub), *H100]
    assert cli.main(words) == 2
    assert hub.asked == []
    assert "query its hub with --hub" in capsys.readouterr().err
    assert cli.main([*words, "--hub"]) == 0
    text = capsys.readouterr().out
    assert f"facts: hub, commit {COMMIT}" in text
    assert cli.main([*words, "--hub", "-o", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["commit"] == COMMIT
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in record["env"]


def test_alternatives_ask_the_hub_too(hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = _values(tmp_path, hub)
    words = ["--model", "Qwen/Test", "--hub", "--config", config, "--concurrency", "900", "--gpu", "NVIDIA-L4=1x1"]
    assert cli.main(["plan", *words, "-o", "json"]) == 3
    alternatives = json.loads(capsys.readouterr().out)["noFit"]["alternatives"]
    commands = [shlex.split(one["command"])[1:] for one in alternatives if one["command"]]
    assert commands
    assert all("--hub" in command and cli.main([*command, "-o", "json"]) == 0 for command in commands)


def test_only_a_named_revision_of_a_known_model_is_asked_for(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _values(tmp_path, hub)
    assert cli.main(["plan", "--model", "Qwen/Qwen3-8B", "--hub", "--config", config, *H100]) == 0
    assert hub.asked == []
    manifest = tmp_path / "qd.yaml"
    spec = {"model": "Qwen/Qwen3-8B", "source": {"uri": "hf://Qwen/Test", "revision": "no-such"}}
    manifest.write_text(yaml.safe_dump({"kind": "QwenDeployment", "metadata": {"name": "a"}, "spec": spec}))
    assert cli.main(["plan", "-f", str(manifest), "--hub", "--config", config, *H100]) == 2
    assert "--hub: the list of files of Qwen/Test was not found" in capsys.readouterr().err
    spec["source"]["revision"] = "refs/pr/1"  # type: ignore[index]  # a value of two types
    manifest.write_text(yaml.safe_dump({"kind": "QwenDeployment", "metadata": {"name": "a"}, "spec": spec}))
    assert cli.main(["render", "-f", str(manifest), "--hub", "--config", config, *H100]) == 0
    made = capsys.readouterr().out
    assert f"- --commit={COMMIT}" in made
    assert f"- --hub-url={hub.address}" in made


def test_a_hub_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("hub: {default: github}")
    assert cli.main(["plan", "--model", "Qwen/Qwen3-8B", "--config", str(path), *H100]) == 2
    assert "values.yaml: hub.default is 'github': it must be hf or modelscope" in capsys.readouterr().err
    assert EngineDefaults("a", "0.5.23").hub == "hf"
