"""What the real loop records, and what `qwen-operator replay` makes of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import random
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_operator import cli
from qwen_operator.api.conditions import Reason
from qwen_operator.cli import recordings
from qwen_operator.config.types import RecordingConfig
from qwen_operator.controller import recorder as recorder_module
from qwen_operator.controller.recorder import Recorder
from qwen_operator.kube import QWENDEPLOYMENTS
from qwen_operator.scaling import recording
from qwen_operator.scaling.demand import ModelDemand
from qwen_operator.scaling.recording import Looked
from qwen_operator.scaling.types import ScaledDeployment, ScalingState
from tests.unit.controller.test_autoscaling import MODEL, SEEN, SIZES, SLEEPS, Engine, ScalingWorld, scaled
from tests.unit.fakes import Clock

LOOKED = Looked(
    ScaledDeployment(("team", "chat"), "u"), 1.0, ScalingState(1, Reason.STEADY, "1 replica wanted", active=True)
)


def recorder(folder: Path, mebibytes: int = 1, deployments: tuple[str, ...] = ("*",)) -> Recorder:
    return Recorder(RecordingConfig(deployments, mebibytes, str(folder)), "operator-0", lambda: 1_800_000_000.0)


def files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*"))


async def ups_and_downs(world: ScalingWorld, engines: list[Engine], policy: str) -> None:
    """Load that comes, stays, cannot be read, goes and comes back, with edits of the spec."""
    chance = random.Random(7)
    spec: dict[str, Any] = SIZES | {"policy": policy}
    world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(scaling=spec))
    for step, (running, queued) in enumerate([(0, 0), (256, 300), (100, 0), (3, 0), (256, 40), (0, 0)]):
        for engine in engines:
            engine.running, engine.queued = running, queued and chance.randrange(queued)
        if step == 2:
            # No page says so, and the operator cannot use it.
            engines[0].running = -1
        if step == 3:
            world.api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"]["scaling"].update(mode="Advisory"))
        if step == 4:
            world.api.edit(
                QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(scaling=SLEEPS | {"policy": policy})
            )
        await world.pass_time(chance.randrange(20, 90))
    await world.pass_time(150)
    world.demand = replace(SEEN, models={MODEL: ModelDemand(held=2, asked=0.1)})
    await world.pass_time(6)
    world.demand = SEEN
    await world.pass_time(20)


def replayed(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> list[Any]:
    assert cli.main(["replay", *files(folder), "-o", "json", *words]) == 0
    runs: list[Any] = json.loads(capsys.readouterr().out)["runs"]
    return runs


@pytest.mark.parametrize("policy", ["Queue", "Objective"])
async def test_the_same_policy_over_a_recording_of_the_real_loop_decides_the_same(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    engines = [Engine(clock) for _ in range(3)]
    taken = recorder(tmp_path)
    async with scaled(engines, clock) as world:
        world.on_look = taken.add
        world.lead()
        await ups_and_downs(world, engines, policy)
        taken.write(taken.take())
        # The next leader begins with what the status shows, in a file of its own.
        taken = Recorder(taken.settings, "operator-1", lambda: 1_800_000_100.0)
        world.on_look = taken.add
        await world.new_leader()
        await world.pass_time(60)
        taken.write(taken.take())
    runs = await asyncio.to_thread(replayed, capsys, tmp_path)
    assert [run["sameDecisions"] for run in runs] == [run["looks"] for run in runs]
    assert [run["policy"] for run in runs] == [policy, policy]
    assert runs[0]["recorded"] == runs[0]["replayed"]
    sizes = {change["replayed"] for change in runs[0]["changes"]}
    assert {0, 1, 3} <= sizes
    assert runs[0]["recorded"]["changes"] >= 4


async def test_other_settings_decide_otherwise_and_the_rows_say_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    engines = [Engine(clock) for _ in range(3)]
    taken = recorder(tmp_path)
    async with scaled(engines, clock) as world:
        world.on_look = taken.add
        world.lead()
        await world.pass_time(10)
        engines[0].running, engines[0].queued = 256, 400
        await world.pass_time(20)
        for engine in engines:
            engine.running, engine.queued = 20, 0
        await world.pass_time(100)
        taken.write(taken.take())
    (run,) = await asyncio.to_thread(replayed, capsys, tmp_path, "--max", "2", "--window", "1000")
    assert run["recorded"]["largest"] == 3
    assert (run["replayed"]["largest"], run["replayed"]["changes"]) == (2, 1)
    assert run["sameDecisions"] < run["looks"]
    rows = {change["replayed"]: change["why"] for change in run["changes"]}
    assert "256 run at once per replica" in rows[2]
    await asyncio.to_thread(cli.main, ["replay", *files(tmp_path), "--deployment", "team/chat"])
    out = capsys.readouterr().out
    assert "team/chat: 64 looks from 2027-01-15T08:00:00Z to" in out
    assert "policy Queue, 1 to 3 replicas, window 30 s" in out
    assert "the same decision at 64 of 64 looks" in out


def test_only_what_was_asked_for_is_recorded(tmp_path: Path) -> None:
    taken = recorder(tmp_path, deployments=("team/c*", "other/x"))
    for key in (("team", "chat"), ("team", "big"), ("other", "x"), ("other", "xy")):
        taken.add(replace(LOOKED, deployment=replace(LOOKED.deployment, key=key)))
    taken.write(taken.take())
    assert [looked.deployment.key for looked in recordings.looks(files(tmp_path))] == [("team", "chat"), ("other", "x")]


def test_the_oldest_files_go_first_and_the_rest_is_whole(tmp_path: Path) -> None:
    taken, chance = recorder(tmp_path), random.Random(1)
    for number in range(60):
        message = chance.randbytes(40_000).hex()
        taken.add(replace(LOOKED, at=float(number), state=replace(LOOKED.state, message=message)))
        taken.write(taken.take())
    sizes = [path.stat().st_size for path in tmp_path.glob("*")]
    assert len(sizes) > 4
    assert sum(sizes) <= 1024 * 1024
    kept = [looked.number for looked in recordings.looks(files(tmp_path))]
    assert kept == list(range(60 - len(kept) + 1, 61))


def test_what_cannot_be_written_is_lost_and_the_operator_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    taken = recorder(tmp_path / "file")
    taken.add(LOOKED)
    with caplog.at_level(logging.WARNING):
        taken.write(taken.take())
    assert "a recording cannot be written" in caplog.text
    monkeypatch.setattr(recorder_module, "MOST_WAITING", len(recording.line(LOOKED)) + 100)
    taken = recorder(tmp_path)
    for _ in range(3):
        taken.add(LOOKED)
    assert taken.lost == 2
    taken.add(replace(LOOKED, at=float("nan")))
    assert taken.lost == 3


def test_a_full_disk_leaves_a_file_that_can_be_read(tmp_path: Path) -> None:
    taken = recorder(tmp_path)
    for message in ("first", random.Random(1).randbytes(40_000).hex(), "last"):
        taken.add(replace(LOOKED, state=replace(LOOKED.state, message=message)))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Python ignores SIGXFSZ, so a write beyond the limit is an OSError, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
        try:
            taken.write(taken.take())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [looked.state.message for looked in recordings.looks(files(tmp_path))] == ["first", "last"]


async def test_what_waits_is_written_when_the_operator_ends(tmp_path: Path) -> None:
    taken = recorder(tmp_path)
    task = asyncio.create_task(taken.run())
    await asyncio.sleep(0)
    taken.add(LOOKED)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [looked.number for looked in recordings.looks(files(tmp_path))] == [1]


def test_a_recording_that_lacks_its_beginning_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [recording.line(replace(LOOKED, at=at, run="r", number=number)) for number, at in ((5, 1.0), (9, 2.0))]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines) + "\n" + lines[0][:30])
    assert cli.main(["replay", str(path)]) == 0
    out = capsys.readouterr().out
    assert "the recording begins with look 5 of this operator process" in out
    assert "3 looks within the recording are missing" in out


def _wrong(tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    good = recording.line(replace(LOOKED, run="r", number=2, at=5.0))
    old = recording.line(replace(LOOKED, run="r", number=1, at=1.0))
    deployment = replace(LOOKED.deployment, policy="Magic\x07")
    contents = {
        "good": good + "\n",
        "text": "hello\n",
        "old": f"{good}\n{old}\n",
        "magic": recording.line(replace(LOOKED, deployment=deployment)) + "\n",
        "empty": "",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "damaged").write_bytes(gzip.compress(b"x" * 10_000)[:-20] + b"x" * 40)
    (tmp_path / "long").write_bytes(gzip.compress(b" " * 3_000_000))
    at = str(tmp_path)
    return {
        "missing": ([f"{at}/none"], "/none: cannot be read: No such file or directory"),
        "no recording": ([f"{at}/text"], "/text: line 1 is no look: it is not JSON; right would be a file that"),
        "out of order": (
            [f"{at}/old"],
            "team/chat: a look is older than the one before: give the files in",
        ),
        "unknown policy": ([f"{at}/magic"], "the recorded policy Magic is unknown: choose Queue or Objective with"),
        "nothing": ([f"{at}/empty"], "/empty: has no look at all"),
        "not in it": ([f"{at}/good", "--deployment", "a/b"], "/good: has no look of a/b"),
        "damaged": ([f"{at}/damaged"], "/damaged: "),
        "long": ([f"{at}/long"], "/long: line 1 has more than 1048576 bytes"),
        "bound": ([f"{at}/good", "--max", "900"], "--max is 900: it must be from 1 to 100"),
        "window": ([f"{at}/good", "--window", "-1"], "--window is -1: it must be from 0 to 86400"),
    }


def test_wrong_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, (words, message) in _wrong(tmp_path).items():
        assert cli.main(["replay", *words]) == 2, name
        err = capsys.readouterr().err
        assert message in err, name
        assert err.count("\n") == 1, name
