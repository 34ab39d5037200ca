"""The simulator computes what can be computed by hand, and its table has every rule."""

from __future__ import annotations

import json
from array import array
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.autoscaling import constant, llmd, traces
from bench.autoscaling.__main__ import SYNTHETIC, best_static, main
from bench.autoscaling.clairvoyant import BLOCK_SECONDS, Schedule, clairvoyant, priced, within
from bench.autoscaling.engine import SPEEDS, Done, Engine, Request, Speed
from bench.autoscaling.fleet import Case, Story, lower_bound, percentiles, simulate
from bench.autoscaling.page import page
from bench.autoscaling.peers import HpaConcurrency, HpaKv, KedaQueue, WvaV2
from bench.autoscaling.replicas import replica
from bench.autoscaling.rules import FAMILIES, RULES, SWEEP, AibrixKpa, KubeAi, Static
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


def _fleet(at: float, *pods: tuple[int, int, int] | None) -> tuple[Sample, tuple[EnginePod, ...]]:
    """Pods with (running, queued, tokens of 1000); None for one that starts."""
    engines = tuple(EnginePod(f"p-{index}", f"{index}", ready=pod is not None) for index, pod in enumerate(pods))
    loads = [
        EngineLoad(f"p-{index}", f"{index}", pod[0], pod[1], pod[2], 1000) for index, pod in enumerate(pods) if pod
    ]
    return Sample(at, tuple(loads)), engines


def test_hpa_by_hand() -> None:
    kv = HpaKv(0.5)
    assert kv.wanted(*_fleet(0.0, (9, 0, 540))) == 1, "within 10 %"
    assert kv.wanted(*_fleet(10.0, (9, 0, 1000))) == 1, "15 s have not passed"
    assert kv.wanted(*_fleet(15.0, (9, 0, 1000))) == 2
    # 1.0 / 0.5 for one pod; the one that starts counts as 0, and then the mean is the target.
    assert kv.wanted(*_fleet(30.0, (9, 0, 1000), None)) == 2
    assert kv.wanted(*_fleet(45.0, (9, 0, 100), (9, 0, 100))) == 2
    assert kv.wanted(*_fleet(329.0, (9, 0, 100), (9, 0, 100))) == 2
    assert kv.wanted(*_fleet(345.0, (9, 0, 100), (9, 0, 100))) == 1, "300 s after the last higher wish"
    many = HpaConcurrency(16)
    assert many.wanted(*_fleet(0.0, (100, 300, 0))) == 5, "25 are needed, but only four more in 15 s"
    assert many.wanted(*_fleet(15.0, *[(40, 40, 0)] * 5)) == 10, "twice the size"


def test_keda_divides_the_sum_by_the_threshold() -> None:
    keda = KedaQueue(5)
    assert [keda.wanted(*_fleet(at, (256, queued, 0))) for at, queued in ((0.0, 12), (15.0, 0), (400.0, 0))] == [
        3,
        3,
        1,
    ]


def test_wva_learns_what_a_replica_takes_when_requests_wait() -> None:
    wva = WvaV2(0.8)
    assert wva.wanted(*_fleet(0.0, (10, 0, 600))) == 1, "600 / 0.85 is less than 800"
    assert wva.wanted(*_fleet(10.0, (10, 50, 900))) == 1, "60 s have not passed"
    # 5 of 10 wait: capacity 600, demand 600 + 5 * 60. 900 / 0.85 - 600 needs one more.
    assert wva.wanted(*_fleet(60.0, (10, 5, 600))) == 2
    assert wva.wanted(*_fleet(120.0, (10, 0, 600), None)) == 2, "the one that starts is supply"
    assert wva.wanted(*_fleet(180.0, (1, 0, 60), (1, 0, 60))) == 2, "an HPA follows it, and waits 300 s"
    assert wva.wanted(*_fleet(480.0, (1, 0, 60), (1, 0, 60))) == 1, "the capacity of 600 is remembered"


def test_every_number_of_a_rule_that_the_table_shows_was_tried() -> None:
    assert set(RULES) - set(SWEEP) == {"Queue (ours), 300 s", "Objective (ours), 300 s"}
    assert all(family.best in family.tried for family in FAMILIES)


def test_a_schedule_starts_replicas_before_they_are_needed() -> None:
    schedule, block = Schedule([1, 1, 4, 1, 1], 60.0), BLOCK_SECONDS
    looks = (0.0, 2 * block - 70, 2 * block - 63, 2 * block + 100, 3 * block, 90 * block)
    assert [schedule.wanted(Sample(at), ()) for at in looks] == [1, 1, 4, 4, 1, 1]


def test_each_block_gets_the_size_that_its_misses_are_worth() -> None:
    misses = {1: [0, 100, 8], 2: [0, 10, 4], 4: [0, 0, 3]}
    assert priced(misses, 0.0) == (1, 1, 1)
    assert priced(misses, 0.1) == (1, 2, 1)
    assert priced(misses, 0.5) == (1, 4, 2)
    assert within(misses, 18) == (1, 2, 1)
    assert within(misses, 3) == (1, 4, 4)


def test_who_knows_the_future_keeps_the_objective_for_no_more_than_a_fixed_size() -> None:
    case = Case(traces.read(SYNTHETIC), SPEEDS["72b-mha"], start=60.0)
    static = best_static(case)
    assert static
    seeing = clairvoyant(case, 0.99, static[1].largest)
    assert seeing
    assert seeing.kept >= 0.99
    assert lower_bound(case) <= seeing.gpu_hours <= static[1].gpu_hours
    assert clairvoyant(case, 0.99, 0) is None


def test_percentiles() -> None:
    assert percentiles(array("d", range(100, 0, -1))) == (51, 96, 100)
    assert percentiles(array("d")) == ()


def test_a_replica_from_a_plan_is_near_the_table_of_profiles() -> None:
    """Two sources: published tables of operators, and Vidur's profiles. Slots and tokens are the operator's plan."""
    speed, start = replica("Qwen/Qwen1.5-72B-Chat", "A100-SXM4-80GB", 4)
    known = SPEEDS["72b-mha"]
    assert speed.floor == pytest.approx(known.floor, rel=0.05)
    assert speed.prefill == pytest.approx(known.prefill, rel=0.2)
    assert (speed.cached, speed.attention) == pytest.approx((known.cached, known.attention), rel=0.02)
    assert (speed.gpus, speed.slots, speed.chunk) == (4, 256, 4096)
    assert start > 600


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "Qwen/Qwen3-32B"], "it needs --gpu and --tp, or must be one of 7b-mha"),
        (["--model", "7b-gqa", "--tp", "2"], "leave out --gpu and --tp"),
        (["--model", "Qwen/Qwen3-32B", "--gpu", "T4", "--tp", "2"], "--gpu is T4: its speed is not known"),
        (["--model", "Qwen/Nothing", "--gpu", "H200", "--tp", "2"], "Qwen/Nothing"),
        (["--model", "Qwen/Qwen3-32B", "--gpu", "L40S", "--tp", "1"], "the operator has no plan: "),
        (["--model", "Qwen/Qwen3-30B-A3B", "--gpu", "H200", "--tp", "1"], "--model is not a dense model in bfloat16"),
    ],
)
def test_a_replica_that_is_not_known(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    assert message in capsys.readouterr().err


def test_the_published_benchmark_of_llm_d() -> None:
    """12,480 requests; eight fixed replicas keep all, as published, and six are too few."""
    for poisson in (False, True):
        case = llmd.case(1, poisson=poisson)
        assert len(case.requests) == 12_480
        assert case.requests == llmd.case(1, poisson=poisson).requests
    results = {size: simulate(llmd.case(1), Static(size)) for size in (6, 8)}
    assert results[8].kept == 1.0
    assert results[8].replicas == pytest.approx(8, abs=0.01)
    assert results[6].kept < 0.9
    objective = simulate(llmd.case(1), llmd.rules()["Objective (ours), 100 s"]())
    assert objective.kept >= llmd.PUBLISHED[0]


def test_a_seed_gives_the_looks_jitter_and_the_same_run_twice() -> None:
    case = replace(Case(traces.read(SYNTHETIC), SPEEDS["72b-mha"]), seed=3)
    first, again, other = (
        simulate(replace(case, seed=seed), RULES["KEDA, queue 5 (default)"]()) for seed in (3, 3, None)
    )
    assert first == again != other


def test_the_story_of_a_run() -> None:
    case, story = Case(traces.read(SYNTHETIC), SPEEDS["72b-mha"]), Story()
    result = simulate(case, Static(2), story)
    assert result == simulate(case, Static(2))
    assert len(story.missed) == round((1 - result.kept) * len(case.requests))
    assert {moment.wanted for moment in story.moments} == {2}
    assert story.moments[0].ready == 1
    assert story.moments[-1].ready == story.moments[-1].pods == 2


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


def test_a_folder_gets_the_table_the_numbers_and_a_picture(tmp_path: Path) -> None:
    words = ["--trace", str(SYNTHETIC), "--model", "Qwen/Qwen1.5-72B-Chat", "--gpu", "A100-80GB", "--tp", "4"]
    words += ["--start-seconds", "60", "--unscored", "0", "--seed", "1"]
    assert main([*words, "--policies", "Objective", "--out", str(tmp_path)]) == 0
    (numbers,) = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {"Objective (ours), 300 s", "clairvoyant"} <= set(numbers["rules"])
    assert len(numbers["rules"]["clairvoyant"]["first_token"]) == 3
    assert "| clairvoyant | **99" in (tmp_path / "tables.md").read_text(encoding="utf-8")
    (image,) = tmp_path.glob("*.svg")
    texts = [item.text for item in ElementTree.fromstring(image.read_text(encoding="utf-8")).iter() if item.text]
    assert "Objective (ours), 300 s" in texts


def test_missing_data_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--suite", "design", "--traces", str(tmp_path)]) == 1
    assert "Azure/AzurePublicDataset" in capsys.readouterr().err
    assert not {window for window in SUITES["held-out"] if window in SUITES["design"]}


def test_the_page_says_what_the_numbers_say() -> None:
    def rule(kept: float, hours: float) -> dict[str, float]:
        return {"kept": kept, "gpu_hours": hours, "changes": 3, "largest": 4}

    first = {"X": rule(0.991, 4.0), "fixed: 4": rule(1.0, 8.0)}
    second = {"X": rule(0.95, 8.0), "clairvoyant": rule(0.99, 2.0)}
    windows = [
        {"name": "a", "requests": 1000, "lowerBoundGpuHours": 2.0, "rules": first},
        {"name": "b", "requests": 10, "lowerBoundGpuHours": 1.0, "rules": second},
    ]
    lines = list(page(windows))
    assert lines[0] == "1. a: 1,000 requests"
    assert "| X | **99.10 % @ 2.00** | 95.00 % @ 8.00 |" in lines
    assert "| fixed | **100.00 % @ 4.00 (4)** | - |" in lines
    assert "| X | 1 of 2 | 97.0 % | 95.0 % | 4.00 | 4.00 | 6 |" in lines


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
