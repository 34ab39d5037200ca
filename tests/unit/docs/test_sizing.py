"""The page about sizing shows what the program prints, and the table that it uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_operator import cli, engines

PAGE = (Path(__file__).resolve().parents[3] / "docs/sizing.md").read_text()


@pytest.mark.parametrize("gpus", ["NVIDIA-H100-80GB-HBM3=8x1", "NVIDIA-L4=8x1"])
def test_the_examples_are_real_output(capsys: pytest.CaptureFixture[str], gpus: str) -> None:
    cli.main(["plan", "--model", "Qwen/Qwen1.5-72B-Chat", "--gpu", gpus])
    printed = capsys.readouterr().out
    verdict = printed.partition("\n")[0]
    block = next(part for part in PAGE.split("```") if verdict in part).strip().split("...\n")
    assert all(part.strip() in printed for part in block)
    assert block[-1].strip() == printed[-len(block[-1].strip()) - 1 :].strip()


def test_the_table_is_the_programs() -> None:
    tunings = engines.newest().memory.tunings
    rows = [f"| {least} | {one.fraction / 1000:g} | {one.chunk} | {one.graph_batch} |" for least, one in tunings]
    assert "\n".join(rows) in PAGE
