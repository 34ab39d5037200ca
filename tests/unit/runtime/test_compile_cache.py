"""The folder for what engines compile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwen_runtime.compile_cache import USER, VARIABLE, driver_version, use

OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@buildhost)"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version: 12.2.0"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (OPEN, "580.65.06"),
        (CLOSED, "535.183.01"),
        ("", "none"),
        ("Kernel Module ../../etc ", "none"),
        ("\0" * 9999, "none"),
    ],
)
def test_the_drivers_version_is_read_from_its_file(text: str, version: str, tmp_path: Path) -> None:
    path = tmp_path / "version"
    path.write_text(text)
    assert driver_version(path) == version


def test_without_a_driver_there_is_a_word(tmp_path: Path) -> None:
    assert driver_version(tmp_path / "none") == "none"


def test_the_engine_gets_the_folder_of_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/home/qwen/sglang")
    for _ in range(2):
        assert use(tmp_path, "580.65.06", USER) == ""
    assert os.environ[VARIABLE] == str(tmp_path / "580.65.06")
    assert (tmp_path / "580.65.06").is_dir()


@pytest.mark.parametrize("user", [0, 1000])
def test_an_engine_of_another_user_has_a_folder_of_its_own(
    user: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "/home/qwen/sglang")
    assert use(tmp_path, "580.65.06", user) == ""
    assert os.environ[VARIABLE] == str(tmp_path / f"580.65.06-{user}")
    assert [path.name for path in tmp_path.iterdir()] == [f"580.65.06-{user}"]


def test_a_folder_that_cannot_be_made_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/home/qwen/sglang")
    assert "the engine compiles without a cache" in use(tmp_path / "absent", "580.65.06", USER)
    assert os.environ[VARIABLE] == "/home/qwen/sglang"
