"""The registry of SGLang's versions: each has a folder, and a version without one gets the nearest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen_operator import engines
from qwen_operator.api.conditions import Reason
from qwen_runtime.checkpoints.config import LAYOUTS, POSITION_KEYS, headless
from qwen_runtime.log_lines import LogLines
from qwen_runtime.reasons import Phase, ReportReason
from qwen_runtime.versions import nearest, order

FOLDER = Path(engines.__file__).parent
LOG_LINES = sorted(FOLDER.glob("*/log_lines.json"))


def test_every_folder_is_in_the_registry_oldest_first() -> None:
    assert list(engines.VERSIONS) == sorted(engines.VERSIONS, key=order)
    folders = {path.name for path in FOLDER.iterdir() if path.name.startswith("sglang_")}
    assert folders == {engines.folder(version) for version in engines.VERSIONS}


@pytest.mark.parametrize("version", engines.VERSIONS)
def test_a_folder_is_about_its_version(version: str) -> None:
    known = engines.of(version)
    assert (known.version, known.options.version) == (version, version)
    assert len(set(known.options.options.values())) > 500
    assert [least for least, _ in known.memory.tunings] == sorted(least for least, _ in known.memory.tunings)


def test_the_versions_differ_in_options_only() -> None:
    older, newer = engines.of("0.5.22"), engines.of("0.5.23")
    assert (older.metrics, older.memory, older.formats, older.parsers) == (
        newer.metrics,
        newer.memory,
        newer.formats,
        newer.parsers,
    )
    assert "--enable-amd-monokernel" in newer.options.options
    assert "--enable-amd-monokernel" not in older.options.options


@pytest.mark.parametrize(
    ("version", "stand_in"),
    [("0.5.24", "0.5.23"), ("9.9.9", "0.5.23"), ("0.5.22.post1", "0.5.22"), ("0.4.0", "0.5.22"), ("mine", "0.5.23")],
)
def test_a_version_without_a_folder_has_the_constants_of_the_nearest_and_no_options(
    version: str, stand_in: str
) -> None:
    nearest, known = engines.of(version), engines.of(stand_in)
    assert (nearest.version, nearest.memory, nearest.options.planned) == (stand_in, known.memory, known.options.planned)
    assert (nearest.options.version, nearest.options.options) == (version, {})


@pytest.mark.parametrize("version", engines.VERSIONS)
def test_the_operator_plans_only_what_the_version_has(version: str) -> None:
    engine = engines.of(version)
    models, parsers = engine.models, engine.parsers
    assert set(LAYOUTS) <= models.architectures
    assert {parsers.tools, parsers.coder_tools} <= set(models.tool_call_parsers)
    assert {parsers.thinking, parsers.hybrid_thinking, parsers.requested_thinking} <= set(models.reasoning_parsers)
    assert all(models.loads(method) for method in engine.formats.weights)
    models_json = json.loads((FOLDER / engines.folder(version) / "models.json").read_text())
    assert models_json["contextKeys"] == list(POSITION_KEYS)
    assert {name for name in LAYOUTS if headless(name)} == set(LAYOUTS) & models.textless


def test_a_version_without_a_folder_claims_nothing() -> None:
    models = engines.of("9.9.9").models
    assert not models.known
    assert not models.loads("fp8")


def test_nothing_is_nearest_to_nothing() -> None:
    with pytest.raises(ValueError, match="no version of SGLang is known"):
        nearest("0.5.23", ())


@pytest.mark.parametrize("path", LOG_LINES, ids=lambda path: path.parent.name)
def test_log_lines_are_of_their_folder_and_name_each_phase_and_each_reason(path: Path) -> None:
    lines = LogLines.parse(path.read_text(encoding="utf-8"))
    assert engines.folder(lines.version) == path.parent.name
    assert [phase for phase, _ in lines.phases] == list(reversed(Phase))[:-1]
    assert set(lines.bars) == {Phase.LOAD_WEIGHTS, Phase.CAPTURE_GRAPHS}
    reasons = [reason for reason, _ in lines.failures]
    assert len(set(reasons)) == len(reasons)
    # The runtime itself finds these, in no line of the engine.
    others = {ReportReason.GROUP_INCOMPLETE, ReportReason.MEMBER_ENDED, ReportReason.ADAPTER_MISMATCH}
    assert set(reasons) == set(ReportReason) - {ReportReason.UNKNOWN, *others}
    assert {reason.value for reason in reasons} <= {reason.value for reason in Reason}
