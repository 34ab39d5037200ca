"""Deaths of SGLang 0.5.23 on a CPU, each caused for real and its log recorded: what the report says of them.

`data/<death>.log` is what the engine printed under `launch`, without repetitions and the list of options. The ending
is what `launch` saw: exit code or signal, whether it was told to end, and the container's count of OOM kills.
"""

from pathlib import Path

import pytest

from qwen_runtime.diagnose import Ending, asked_report, failure_report, verdict
from qwen_runtime.engine_log import EngineLog, Patience
from tests.unit.runtime.known import KNOWN

DATA = Path(__file__).parent / "data"
PRESENT = ("/models/source/unreadable/model-00002-of-00003.safetensors",)


def recorded(death: str) -> EngineLog:
    log = EngineLog(KNOWN, Patience(), lambda: 0.0)
    for line in (DATA / f"{death}.log").read_text(encoding="utf-8").splitlines():
        log.observe(line)
    return log


def ending(status: int, *, asked: bool = False, hung: bool = False, oom_kills: int | None = 0) -> Ending:
    return Ending(status, asked, hung, oom_kills)


DEATHS = [
    ("bad-flag", ending(2), "BadFlag", "Starting", "error: unrecognized arguments: --no-such-flag 1"),
    ("bad-value", ending(2), "BadFlag", "Starting", "argument --dtype: invalid choice: 'float8_e4m3'"),
    ("truncated-weights", ending(-9), "TruncatedWeights", "LoadWeights", "incomplete metadata, file not fully covered"),
    ("weights-missing", ending(-9), "ModelNotFound", "LoadWeights", "Cannot find any model weights with"),
    ("model-missing", ending(1), "ModelNotFound", "Starting", "Repo id must be in the form"),
    ("unreadable", ending(-9), "UnreadableWeights", "LoadWeights", "model-00002-of-00003.safetensors"),
    ("config-broken", ending(1), "InvalidConfig", "Starting", "is not a valid JSON file"),
    ("no-tokenizer", ending(-9), "TokenizerMissing", "WarmUp", "cannot reshape tensor of 0 elements"),
    ("unknown-architecture", ending(-9), "UnknownArchitecture", "Starting", "'FooForCausalLM' is not a registered"),
    ("context-too-long", ending(1), "ContextTooLong", "Starting", "context_length (16384) is greater than"),
    ("port-in-use", ending(-9, hung=True), "PortInUse", "WarmUp", "address already in use"),
    (
        "scheduler-killed-serving",
        ending(-9),
        "EngineKilled",
        "Serving",
        "scheduler_0 (pid=39) crashed with exit code -9",
    ),
    ("scheduler-killed-serving", ending(-9, oom_kills=1), "HostOutOfMemory", "Serving", "exit code -9"),
    ("scheduler-killed-loading", ending(1), "EngineKilled", "Starting", "(exit code: -9)"),
    ("memory-limit-child", ending(1, oom_kills=1), "HostOutOfMemory", "LoadWeights", "scheduler died during init"),
    ("memory-limit-main", ending(-9, oom_kills=1), "HostOutOfMemory", "Starting", ""),
    ("main-killed", ending(-9), "EngineKilled", "Serving", ""),
    ("frozen", ending(-9, asked=True, hung=True), "Hung", "Serving", "Health check failed."),
]


@pytest.mark.parametrize(("death", "end", "reason", "phase", "says"), DEATHS)
def test_a_recorded_death_has_its_reason(death: str, end: Ending, reason: str, phase: str, says: str) -> None:
    log = recorded(death)
    report = failure_report(end, log, verdict(end, log, PRESENT.__contains__))
    assert (report["reason"], report["phase"]) == (reason, phase)
    assert says in report["log"][-1]
    assert len(report["log"]) <= 10


def test_every_recording_is_judged() -> None:
    ordinary = {"term-serving", "term-loading", "main-stopped"}
    assert {path.stem for path in DATA.glob("*.log")} == {death for death, *_ in DEATHS} | ordinary


@pytest.mark.parametrize(
    ("death", "phase"), [("term-serving", "Serving"), ("main-stopped", "Serving"), ("term-loading", "Starting")]
)
def test_an_engine_that_is_told_to_end_in_peace_has_no_reason(death: str, phase: str) -> None:
    log = recorded(death)
    log.asked_to_end()
    report = asked_report(log)
    assert (report["phase"], "reason" in report, log.deadline) == (phase, False, None)


def test_a_frozen_engine_that_is_told_to_end_is_not_waited_for() -> None:
    log = recorded("frozen")
    assert log.deadline is None
    log.asked_to_end()
    assert log.deadline == Patience().crash_seconds
    assert asked_report(log)["reason"] == "Hung"
