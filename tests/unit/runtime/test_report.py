"""A report always fits, and loses the least useful first."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen_runtime.report import LIMIT_BYTES, LINE_BYTES, bounded, canonical, deliver, shorten

any_text = st.text(st.characters(codec=None), max_size=3000)


@given(reason=any_text, message=any_text, file=any_text)
@example(reason="\0" * 3000, message="\ud800é" * 3000, file='"' * 3000)
def test_an_error_report_fits_whatever_it_quotes(reason: str, message: str, file: str) -> None:
    data = bounded({"version": 1, "error": {"reason": reason, "message": message, "file": file, "bytesWanted": 2**63}})
    assert len(data) <= LIMIT_BYTES
    assert json.loads(data)["error"]["bytesWanted"] == 2**63


@given(log=st.lists(any_text, max_size=14))
@example(log=[f"{number} " + "x" * 1000 for number in range(14)])
@example(log=["\0" * 3000] * 14)
def test_a_log_keeps_its_newest_lines(log: list[str]) -> None:
    data = bounded({"version": 1, "reason": "Unknown", "phase": "Starting", "exitCode": 1, "log": log})
    assert len(data) <= LIMIT_BYTES
    kept = json.loads(data)["log"]
    newest = [shorten(line, LINE_BYTES) for line in log[-10:]]
    expected = json.loads(canonical({"log": newest}))["log"]
    assert kept == expected[len(expected) - len(kept) :]
    assert len(kept) >= min(len(newest), 7)


@given(text=any_text, limit=st.integers(3, 200))
def test_shortened_text_fits_and_is_a_beginning(text: str, limit: int) -> None:
    short = shorten(text, limit)
    assert len(canonical({"": short})) <= limit + len(canonical({"": ""}))
    assert short == text or text.startswith(short.removesuffix("…"))


def test_a_report_that_fits_is_left_alone_and_canonical() -> None:
    assert bounded({"b": "é", "a": [1, None, True]}) == '{"a":[1,null,true],"b":"é"}'.encode()


def test_a_report_with_too_many_keys_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="too many keys"):
        bounded({f"key{number}": number for number in range(1000)})


def test_delivery_is_in_place_and_failure_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "termination-log"
    target.write_text("older and longer")
    inode = target.stat().st_ino
    assert deliver(b"{}", target)
    assert (target.read_bytes(), target.stat().st_ino) == (b"{}", inode)
    assert not deliver(b"{}", tmp_path / "missing" / "file")
    assert "cannot write the report to" in capfd.readouterr().err
