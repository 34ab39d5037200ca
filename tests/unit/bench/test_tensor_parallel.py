"""GPUs per replica of the whole catalog beside the oracle, and the page that shows them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from bench import cases, report, tensor_parallel
from bench.comparison import BOUNDARY, NO_DATA, Summary, summarize
from bench.oracle import CARDS, Verdict
from bench.picture import Bar, svg
from qwen_operator.api.conditions import Reason
from qwen_operator.checkpoints import catalog
from qwen_operator.planning.types import NoFit


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summarize(cases.every())


def test_the_smallest_valid_number_of_gpus_is_planned_for_every_case(summary: Summary) -> None:
    assert summary.disagreements == ()
    assert summary.ratio == 1.0
    assert len(summary.rows) == len(catalog.entries()) * len(CARDS)
    assert len(summary.compared) > 0.9 * len(summary.rows)
    assert summary.left_out(BOUNDARY) + summary.left_out(NO_DATA) + len(summary.compared) == len(summary.rows)


def test_a_plan_that_takes_too_much_would_show(summary: Summary) -> None:
    row = next(one for one in summary.compared if one.planned == 1)
    assert row.model is not None

    worse = replace(row, verdict=Verdict(2, boundary=False))
    refused = replace(row, case=replace(row.case, plan=NoFit(Reason.DOES_NOT_FIT, "")))

    assert not worse.agrees
    assert refused.planned is None
    assert not refused.agrees


def test_peers_take_more_or_what_the_engine_refuses(summary: Summary) -> None:
    assert summary.ome.ratio > 1.2
    assert summary.kaito.ratio > 1.2
    assert summary.kaito.refused > 0


@pytest.fixture
def one_model(summary: Summary, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sees the cases of one model only."""
    few = [row.case for row in summary.rows if row.case.entry.repository == "Qwen/Qwen1.5-72B-Chat"]
    monkeypatch.setattr(cases, "every", lambda: iter(few))


@pytest.mark.usefixtures("one_model")
def test_the_json_of_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert tensor_parallel.main(["--json"]) == 0

    printed = json.loads(capsys.readouterr().out)
    assert (printed["cases"], printed["ratio"]) == (len(CARDS), 1.0)
    [row] = [one for one in printed["rows"] if one["product"] == "NVIDIA-H100-80GB-HBM3"]
    assert (row["gpus"], row["tensorParallel"], row["smallestValid"]) == (4, 4, 4)
    assert (row["ome"], row["kaito"]) == (8, 8)


@pytest.mark.usefixtures("one_model")
def test_the_text_of_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert tensor_parallel.main([]) == 0

    printed = capsys.readouterr().out
    assert "target 1.00" in printed
    assert "KAITO" in printed


def test_the_docs_are_what_the_code_writes(summary: Summary) -> None:
    table, picture = report.DOCS / report.TABLE, report.DOCS / report.PICTURE

    assert table.read_text() == report.markdown(summary)
    assert picture.read_text() == report.picture(summary)


def test_a_bar_has_the_width_of_its_memory() -> None:
    small, large = Bar("small", "TP 1 <1>", 10.0, 5.0, 5.0), Bar("large", "TP 2", 20.0, 10.0, 10.0)

    tree = ET.fromstring(svg("A picture & its title", [small, large]))

    spaces = {"svg": "http://www.w3.org/2000/svg"}
    rects = [one for one in tree.findall("svg:rect", spaces) if one.get("height") == "20"]
    widths = [float(one.get("width", "0")) for one in rects]
    assert [width / widths[0] for width in widths] == pytest.approx([1, 0.5, 0.5, 2, 1, 1], abs=0.01)
    texts = [one.text for one in tree.findall("svg:text", spaces)]
    assert {"A picture & its title", "small", "TP 1 <1>", "20.0"} <= set(texts)
