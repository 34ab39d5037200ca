"""The simulator computes what can be computed by hand, and its table has every rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.autoscaling import constant, traces
from bench.autoscaling.__main__ import SYNTHETIC, main
from bench.autoscaling.engine import SPEEDS, Done, Engine, Request, Speed
from bench.autoscaling.fleet import Case, lower_bound, simulate
from bench.autoscaling.rules import RULES, AibrixKpa, KubeAi, Static
from bench.autoscaling.windows import SUITES
from qwen_operator.scaling.types import EngineLoad, EnginePod, Sample

SPEED = Speed(floor=0.01, prefill=0.0001, cached=0.0, attention=0.0, pool=10_000, slots=2)


def _engine(speed: Speed, *requests: Request) -> tuple[Engine, list[Done]]:
    done: list[Done] = []
    engine = Engine(speed, 0.0, done.append)
    for request in requests:
        engine.advance(request.arrival)
        engine.add(request)
    engine.advance(1000.0)
    return engine, done


def test_one_request_alone() -> None:
    """0.1 s of prefill and 99 steps of 10 ms."""
    engine, (done,) = _engine(SPEED, Request(1.0, 1000, 100))
    assert [done.first, done.last] == pytest.approx([1.1, 2.09])
    assert (engine.prefilled, engine.decoded, engine.used, engine.requests) == (1000, 99, 0, 0)
    assert engine.idle == pytest.approx(1000 - 1.09)


def test_requests_wait_for_slots_and_for_the_cache() -> None:
    _, done = _engine(SPEED, *[Request(0.0, 100, 101)] * 3)
    assert [round(each.first, 2) for each in done] == [0.02, 0.02, 1.03]
    _, done = _engine(SPEED, *[Request(0.0, 5000, 101)] * 2)
    assert [round(each.first, 2) for each in done] == [0.5, 2.0]


def test_prefill_stops_decoding() -> None:
    _, done = _engine(SPEED, Request(0.0, 100, 101), Request(0.5, 5000, 1))
    last = max(each.last for each in done)
    assert last == pytest.approx(0.01 + 1.0 + 0.5, abs=0.02)


def test_the_cache_slows_steps_as_it_grows() -> None:
    speed = Speed(floor=0.01, prefill=0.0001, cached=1e-5, attention=0.0, pool=10_000)
    _, (done,) = _engine(speed, Request(0.0, 1000, 101))
    assert done.last - done.first == pytest.approx(sum(0.01 + 1e-5 * (1000 + step) for step in range(100)))


def test_more_replicas_keep_more_and_cost_more() -> None:
    case = Case(traces.read(SYNTHETIC), SPEEDS["72b-mha"], start=60.0)
    small, large = simulate(case, Static(1)), simulate(case, Static(4))
    assert small.kept < 0.9 < large.kept
    assert lower_bound(case) <= large.gpu_hours
    assert large.gpu_hours == pytest.approx(4 * small.gpu_hours, rel=0.05)


def test_the_latency_policy_keeps_what_the_queue_misses() -> None:
    case = Case(traces.read(SYNTHETIC), SPEEDS["72b-mha"])
    queue, objective = (simulate(case, RULES[f"{name} (ours), 300 s"]()) for name in ("Queue", "Objective"))
    assert queue.kept < 0.9
    assert objective.kept > 0.99


def _look(at: float, used: int, requests: int = 0) -> tuple[Sample, tuple[EnginePod, ...]]:
    return Sample(at, (EngineLoad("a", "a", requests, 0, used, 1000, requests),)), (EnginePod("a", "a"),)


def test_the_rules_of_others() -> None:
    kpa, kubeai = AibrixKpa(0.5), KubeAi(4)
    assert [kpa.wanted(*_look(at, 1000)) for at in (0.0, 10.0)] == [2, 2]
    assert kpa.wanted(*_look(20.0, 0)) == 2, "down at the earliest after 300 s"
    sizes = [kubeai.wanted(*_look(at * 10.0, 0, 60)) for at in range(60)]
    assert (sizes[0], sizes[-1]) == (1, 15)


def test_a_window_of_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n10,5,5\n3700,6,0\n9000,7,7\n", encoding="utf-8")
    assert traces.read(path, 1.0, 1.0) == [Request(100.0, 6, 1)]


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "out.json"), "--unscored", "0", "--rules", "KubeAI"]) == 0
    printed = capsys.readouterr().out
    assert "| KubeAI, 100 (default) |" in printed
    assert "| fixed: 1 |" in printed
    assert '"lowerBoundGpuHours"' in (tmp_path / "out.json").read_text(encoding="utf-8")


def test_missing_data_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--suite", "design", "--traces", str(tmp_path)]) == 1
    assert "Azure/AzurePublicDataset" in capsys.readouterr().err
    assert not {window for window in SUITES["held-out"] if window in SUITES["design"]}


def test_a_constant_load_has_its_rate_and_lengths_and_is_always_the_same() -> None:
    requests = constant.poisson(2.0)
    assert len(requests) == pytest.approx(2.0 * constant.HOURS * 3600, rel=0.05)
    assert sum(each.prompt for each in requests) / len(requests) == pytest.approx(1000, rel=0.05)
    assert sum(each.output for each in requests) / len(requests) == pytest.approx(170, rel=0.05)
    assert requests == constant.poisson(2.0)


def test_the_table_of_constant_loads(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constant, "RATES", {"7b-mha": (0.05, 0.1)})
    constant.main(["--models", "7b-mha", "--rules", "Queue"])
    assert "| 7b-mha | Queue (ours), 300 s | 2 | 0 | 0 | 6.0 | 100.00% |" in capsys.readouterr().out
