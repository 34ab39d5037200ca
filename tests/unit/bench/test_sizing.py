"""The predicted KV pool against public start-up logs: the target, what may go in, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import held_out, prediction, sizing, sizing_page
from bench.prediction import Point
from bench.sglang_defaults import Run, mem_fraction, read_version

GIVEN = {
    "id", "model", "quant", "gpu", "gpu_mem_mib", "tp", "sglang", "mem_fraction_static", "mem_fraction_source",
    "context_len", "page_size", "layers", "kv_heads", "head_dim", "params", "hybrid", "capped", "max_total_num_tokens",
}  # fmt: skip


@pytest.fixture(scope="module")
def points() -> list[Point]:
    return prediction.read_points(prediction.POINTS)


def test_the_targets_are_met_on_all_points_whose_inputs_exist(points: list[Point]) -> None:
    report = prediction.evaluate(points)

    assert [one.id for one in report.results] == ["M01", "M02", "M05", "M08", "M11"]
    assert report.mean_percent <= 2
    assert report.max_percent <= 5
    assert report.over_promise_percent <= 1


def test_no_memory_that_a_log_printed_goes_in(points: list[Point]) -> None:
    bare = [{key: value for key, value in point.items() if key in GIVEN} for point in points]

    assert prediction.evaluate(bare) == prediction.evaluate(points)


def test_every_point_is_predicted_or_left_out_with_a_reason(points: list[Point]) -> None:
    report = prediction.evaluate(points)

    named = [one.id for one in report.results] + [one.id for one in report.left_out]
    assert sorted(named) == sorted(str(point["id"]) for point in points)
    why = {one.id: one.reason for one in report.left_out}
    assert "--max-total-tokens" in why["M23"]
    assert "gpu.memory" in why["M07"]
    assert "--mem-fraction-static" in why["M19"]
    assert "CPU" in why["M13"]


def test_constants_hold_on_runs_that_they_were_not_set_from(points: list[Point]) -> None:
    reports = held_out.both_ways(points)

    assert [[one.id for one in report.results] for report in reports.values()] == [
        ["M01", "M05", "M11"],
        ["M02", "M08"],
    ]
    assert max(report.mean_percent for report in reports.values()) <= 2
    assert max(report.max_percent for report in reports.values()) <= 5


UNUSABLE = {
    "no version": ({"sglang": "some build", "mem_fraction_static": None}, "version of SGLang"),
    "a split that cannot be": ({"tp": 3}, "attention heads are not divisible by TP 3"),
    "an unknown model": ({"model": "other/model", "quant": "fp8-block128"}, "not in the catalog"),
    "an unknown hybrid": ({"model": "other/model", "hybrid": True}, "state of a hybrid"),
    "a default for images": ({"model": "Qwen/Qwen3.5-27B"}, "vision part"),
    "nothing to compare with": ({"max_total_num_tokens": None}, "no number of tokens"),
}


@pytest.mark.parametrize(("change", "reason"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_what_cannot_be_predicted(points: list[Point], change: Point, reason: str) -> None:
    first = {**points[0], "mem_fraction_source": "default", **change}

    report = prediction.evaluate([first])

    assert report.results == ()
    assert reason in report.left_out[0].reason
    assert (report.mean_percent, report.max_percent, report.over_promise_percent) == (0, 0, 0)


def test_a_model_beyond_the_catalog_is_predicted_from_its_architecture(points: list[Point]) -> None:
    known = next(point for point in points if point["id"] == "M02")
    renamed = {**known, "model": "team/fine-tune"}

    [own] = prediction.evaluate([renamed]).results
    [listed] = prediction.evaluate([known]).results

    assert own.predicted == pytest.approx(listed.predicted, rel=0.005)


def test_a_hybrid_shares_its_pool_between_state_and_kv_cache(points: list[Point]) -> None:
    hybrid = {**points[0], "model": "Qwen/Qwen3.5-27B", "mem_fraction_static": 0.85}

    [one] = prediction.evaluate([hybrid]).results

    # 0.85 x 78.47 - 51.0 GiB, of which 10 / 19 at 64 KiB a token
    assert one.predicted == pytest.approx(136000, rel=0.05)


def test_the_json_has_the_agreed_shape(tmp_path: Path, points: list[Point], capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "points.json"
    file.write_text(json.dumps([{**points[0], "page_size": 64}]))

    assert sizing.main(["--points", str(file), "--json"]) == 0

    printed = json.loads(capsys.readouterr().out)
    [point] = printed["points"]
    assert set(point) == {"id", "predicted", "logged", "errorPercent"}
    assert {"meanPercent", "maxPercent", "overPromisePercent"} <= set(printed)
    assert point["predicted"] % 64 == 0
    assert point["errorPercent"] == pytest.approx((point["predicted"] / point["logged"] - 1) * 100, abs=0.001)


def test_the_table_names_every_point(points: list[Point], capsys: pytest.CaptureFixture[str]) -> None:
    assert sizing.main([]) == 0

    printed = capsys.readouterr().out
    assert [point["id"] for point in points if str(point["id"]) not in printed] == []


FRACTIONS = {
    # (MiB, ranks): at 0.4.10, at 0.5.8, at 0.5.23
    "T4": ((15360, 1), (0.807, 0.757, 0.735)),
    "L4": ((23034, 1), (0.871, 0.837, 0.684)),
    "L40S": ((46068, 1), (0.778, 0.851, 0.843)),
    "H100": ((81559, 1), (0.874, 0.835, 0.83)),
    "8 x H100": ((81559, 8), (0.831, 0.818, 0.812)),
    "8 x H200": ((143771, 8), (0.886, 0.897, 0.893)),
    "B200": ((183359, 1), (0.821, 0.857, 0.854)),
}


@pytest.mark.parametrize(("run", "fractions"), FRACTIONS.values(), ids=FRACTIONS.keys())
def test_the_defaults_of_sglang_by_version(run: tuple[int, int], fractions: tuple[float, ...]) -> None:
    versions = ((0, 4, 10), (0, 5, 8), (0, 5, 23))

    assert tuple(mem_fraction(Run(*run), version) for version in versions) == fractions


def test_settings_that_the_run_made_change_its_default() -> None:
    assert mem_fraction(Run(81559, 1, chunk=16384, graph_batch=512), (0, 5, 23)) < 0.83


VERSIONS = {
    "0.4.10/0.5.0rc (2025-08-08)": (0, 4, 10),
    "nightly 2026-08-27 (post-0.5.19; chunk 8192)": (0, 5, 20),
    "main 2026-05-24 (~0.5.13)": (0, 5, 13),
    "git ebaf86d": None,
}


@pytest.mark.parametrize(("text", "version"), VERSIONS.items())
def test_versions_are_read_from_free_text(text: str, version: tuple[int, int, int] | None) -> None:
    assert read_version(text) == version


def test_the_page_in_the_docs_is_the_one_that_the_code_writes(points: list[Point]) -> None:
    assert sizing_page.PAGE.read_text() == sizing_page.markdown(points, prediction.evaluate(points))
