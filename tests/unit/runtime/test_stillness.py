"""Schedulers that do nothing, with real processes: which one hangs, and which ones wait for it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qwen_runtime.stillness import FOLDER_VARIABLE, Still, Stillness

# The name is in the kernel only, as SGLang's is.
NAME = "sglang::schedul"
START = f"import ctypes, subprocess, sys, threading, time\nctypes.CDLL(None).prctl(15, b'{NAME}', 0, 0, 0)\n"
SLEEPS = "def hangs():\n    print('up', flush=True)\n    time.sleep(600)\nhangs()\n"
TURNS = "print('up', flush=True)\nwhile True: time.sleep(0.05)\n"
WORKS_BELOW = (
    "work = 'import time; end = time.time() + 20\\nwhile time.time() < end: pass'\n"
    "print('up', flush=True)\nsubprocess.run([sys.executable, '-c', work], stdin=subprocess.DEVNULL)\n"
)
WORKS_IN_A_THREAD = (
    "def work():\n    while True: pass\n"
    "threading.Thread(target=work, daemon=True).start()\nprint('up', flush=True)\nthreading.Event().wait()\n"
)


@dataclass
class Engine:
    """Processes with the archive's start-up code, below this one."""

    archive: Path
    folder: Path
    running: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def start(self, program: str, *, tells: bool = True) -> "subprocess.Popen[bytes]":
        env = {**os.environ, "PYTHONPATH": str(self.archive), **({FOLDER_VARIABLE: str(self.folder)} if tells else {})}
        process = subprocess.Popen([sys.executable, "-c", START + program], env=env, stdout=subprocess.PIPE)
        self.running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return process

    def finds(self, seconds: float = 50.0) -> list[Still]:
        """What is found at last, within so many seconds."""
        looks = Stillness(re.compile("^sglang::schedul"), self.folder, seconds=1.0, confirm_seconds=1.0)
        end, found = time.monotonic() + seconds, list[Still]()
        while not found and time.monotonic() < end:
            found = looks.look()
            time.sleep(0.3)
        return found


@pytest.fixture
def engine(archive: Path, tmp_path: Path) -> Iterator[Engine]:
    made = Engine(archive, tmp_path)
    yield made
    for process in made.running:
        process.kill()
        process.communicate()


def test_a_process_that_hangs_is_found_with_its_function(engine: Engine) -> None:
    engine.start(SLEEPS)
    [still] = engine.finds()
    assert (still.name, still.waits) == (NAME, False)
    assert re.fullmatch(r"hangs \(<string>:\d+\)", still.where)


def test_one_that_waits_for_another_rank_is_not_the_one_that_hangs(engine: Engine, tmp_path: Path) -> None:
    package = tmp_path / "torch" / "distributed"
    package.mkdir(parents=True)
    (package / "distributed_c10d.py").write_text("import time\ndef broadcast():\n    time.sleep(600)\n")
    wait = f"sys.path.insert(0, {str(package)!r})\nimport distributed_c10d\nprint('up', flush=True)\n"
    engine.start(f"{wait}distributed_c10d.broadcast()\n")
    [still] = engine.finds()
    assert still.waits


@pytest.mark.parametrize("function", ["_pp_commit_comm_work", "point_to_point_pyobj"])
def test_one_that_waits_for_another_stage_is_not_the_one_that_hangs(engine: Engine, function: str) -> None:
    engine.start(SLEEPS.replace("hangs", function))
    [still] = engine.finds()
    assert (still.waits, still.where.partition(" ")[0]) == (True, function)


@pytest.mark.parametrize("program", [TURNS, WORKS_BELOW, WORKS_IN_A_THREAD])
def test_one_that_does_something_is_not_found(engine: Engine, program: str) -> None:
    engine.start(program)
    assert engine.finds(6.0) == []


def test_one_that_cannot_tell_its_stack_is_found_and_not_ended(engine: Engine) -> None:
    process = engine.start(SLEEPS, tells=False)
    assert engine.finds(6.0) == []
    assert process.poll() is None


def test_another_name_does_not_count(engine: Engine) -> None:
    engine.start(SLEEPS.replace("def hangs", "ctypes.CDLL(None).prctl(15, b'sglang::detoken', 0, 0, 0)\ndef hangs"))
    assert engine.finds(6.0) == []


def test_a_process_that_a_signal_asks_goes_on(engine: Engine) -> None:
    process = engine.start(SLEEPS)
    os.kill(process.pid, signal.SIGUSR2)
    os.kill(process.pid, signal.SIGUSR2)
    assert engine.finds()
    assert process.poll() is None


def test_a_pause_of_the_whole_pod_is_no_hang(engine: Engine) -> None:
    """After it, everything counts anew: nobody could do anything while it lasted."""
    engine.start(SLEEPS)
    now = [0.0]
    looks = Stillness(re.compile("^sglang::schedul"), engine.folder, 30.0, 10.0, clock=lambda: now[0])

    def found_after(*steps: float) -> list[Still]:
        found: list[Still] = []
        for step in steps:
            now[0] += step
            found = looks.look()
        return found

    # Its stack is there a moment after the question.
    assert found_after(0.0, 60.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0) == []
    time.sleep(1.0)
    assert found_after(5.0, 5.0) == []
    [still] = found_after(5.0)
    assert still.where.startswith("hangs ")
