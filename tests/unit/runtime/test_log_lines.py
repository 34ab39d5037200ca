"""Which version's log lines the archive takes, and what it does without any."""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from qwen_runtime.log_lines import FOLDER as PACKED
from tests.unit.runtime.known import FOLDER, KNOWN

SHOW = "from qwen_runtime.log_lines import installed; print(installed().version)"


@pytest.fixture
def two_versions(archive: Path, tmp_path: Path) -> Path:
    """The archive with one more, older version."""
    target = tmp_path / "two.pyz"
    shutil.copy(archive, target)
    text = (FOLDER / "sglang_0_5_23" / "log_lines.json").read_text(encoding="utf-8")
    with ZipFile(target, "a") as opened:
        opened.writestr(f"qwen_runtime/{PACKED}/sglang_0_4_9.json", text.replace('"0.5.23"', '"0.4.9"'))
    return target


@pytest.mark.parametrize(
    ("installed", "taken"),
    [("0.5.23", "0.5.23"), ("0.5.22", "0.4.9"), ("0.4.2", "0.4.9"), ("0.6.0.dev3+g12ab", "0.5.23"), (None, "0.5.23")],
)
def test_the_nearest_version_of_the_package_beside_it(
    two_versions: Path, tmp_path: Path, installed: str | None, taken: str
) -> None:
    packages = tmp_path / "packages"
    if installed:
        metadata = packages / f"sglang-{installed}.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {installed}\n")
    program = f"import sys; sys.path[:0] = [{str(two_versions)!r}, {str(packages)!r}]; {SHOW}"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == taken


def test_the_archive_has_those_of_every_folder(archive: Path) -> None:
    with ZipFile(archive) as opened:
        packed = {name for name in opened.namelist() if name.startswith(f"qwen_runtime/{PACKED}/")}
        wanted = {f"qwen_runtime/{PACKED}/{path.parent.name}.json" for path in FOLDER.glob("*/log_lines.json")}
        assert packed == wanted
        assert packed


def test_launch_outside_an_archive_is_refused() -> None:
    command = [sys.executable, "-m", "qwen_runtime", "launch", "--", sys.executable, "-c", "print('ran')"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "this copy has no log lines of SGLang" in done.stderr


@pytest.mark.parametrize(
    ("line", "starts"),
    [
        ("SIGQUIT received. signum=None", True),
        ("50% |##[2026-11-23 10:16:57 TP0] SIGQUIT received. signum=None", True),
        ("he wrote: SIGQUIT received.", False),
    ],
)
def test_a_caret_is_the_start_of_a_line_or_the_end_of_a_time_stamp(line: str, starts: bool) -> None:
    assert bool(KNOWN.crash.search(line)) is starts
