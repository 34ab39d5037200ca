"""The archive as it is used in a pod: built, installed, run."""

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import qwen_runtime
from qwen_runtime.__main__ import main
from tests.unit.runtime.checkpoint import checkpoint

PACKAGE = Path(qwen_runtime.__file__).parent
PYPROJECT = PACKAGE.parents[1] / "pyproject.toml"


def run(archive: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-I", str(archive), *arguments], capture_output=True, text=True, check=False)


def test_the_archive_installs_itself_and_inspects(archive: Path, tmp_path: Path) -> None:
    assert run(archive, "install", str(tmp_path / "volume")).returncode == 0
    installed = tmp_path / "volume" / "qwen-runtime.pyz"
    assert installed.stat().st_mode & 0o777 == 0o755
    assert [file.name for file in installed.parent.iterdir()] == [installed.name]
    folder = checkpoint(tmp_path / "model")
    output = tmp_path / "termination-log"
    done = run(installed, "inspect", "--path", str(folder), "--output", str(output))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == output.read_text() + "\n"
    assert json.loads(done.stdout)["weightBytes"] == 100
    (folder / "tokenizer.json").unlink()
    done = run(installed, "inspect", "--path", str(folder), "--output", str(output))
    assert (done.returncode, json.loads(output.read_text())["error"]["reason"]) == (1, "TokenizerMissing")


def test_facts_that_cannot_be_delivered_are_a_failure(archive: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    done = run(archive, "inspect", "--path", str(folder), "--output", str(tmp_path / "none" / "log"))
    assert done.returncode == 1
    assert json.loads(done.stdout)["layers"] == 24
    assert "cannot write the report" in done.stderr


def test_install_outside_an_archive_or_into_a_file_is_refused(archive: Path, tmp_path: Path) -> None:
    module = [sys.executable, "-m", "qwen_runtime", "install", str(tmp_path)]
    done = subprocess.run(module, capture_output=True, text=True, check=False)
    assert (done.returncode, "run install from the archive itself" in done.stderr) == (1, True)
    (tmp_path / "file").write_text("")
    done = run(archive, "install", str(tmp_path / "file"))
    assert (done.returncode, "cannot copy" in done.stderr, "Traceback" in done.stderr) == (1, True, False)


def test_the_archive_passes_the_exit_code_of_an_engine_on(archive: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    engine = [sys.executable, "-c", "import sys; sys.exit(6)"]
    assert run(archive, "launch", "--termination-log", str(log), "--", *engine).returncode == 6
    assert json.loads(log.read_text())["exitCode"] == 6


def test_version_is_the_projects(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == tomllib.loads(PYPROJECT.read_text())["project"]["version"]


def test_prestop_waits_as_long_as_told() -> None:
    waited: list[float] = []
    assert main(["prestop", "--seconds", "12"], sleep=waited.append) == 0
    assert waited == [12.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["launch"], "launch needs the engine's command after --"),
        (["launch", "--"], "launch needs the engine's command after --"),
        (["prestop", "--seconds", "1", "--", "x"], "prestop takes no command after --"),
        (["prestop", "--seconds", "-1"], "-1 is not a number of seconds from 0 to 86400"),
        (["prestop", "--seconds", "nan"], "nan is not a number of seconds"),
        (["inspect"], "inspect needs --path or --adapter"),
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_every_module_is_python_3_10() -> None:
    """Engine images are not ours: their Python may be older than the operator's."""
    for module in PACKAGE.rglob("*.py"):
        ast.parse(module.read_text(), feature_version=(3, 10))
