"""The init with real processes: signals, orphans, hangs, exit codes, output."""

import fcntl
import hashlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qwen_runtime.diagnose import Ending, failure_report, verdict
from qwen_runtime.engine_log import EngineLog, Patience
from qwen_runtime.processes import oom_kills
from tests.unit.runtime.known import KNOWN

SIGQUIT = "[2026-11-23 10:16:57] SIGQUIT received. signum=None, frame=None. It usually means one child failed."
FOREVER = "\nwhile True: time.sleep(60)\n"
IMPORTS = "import os, signal, sys, time\n"


@dataclass
class Launched:
    """`launch` around a Python program given as text."""

    archive: Path
    folder: Path
    running: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.folder / "termination-log"

    def start(self, program: str, *options: str) -> "subprocess.Popen[bytes]":
        child = [sys.executable, "-I", "-S", "-u", "-c", IMPORTS + program]
        return self.start_command(child, *options)

    def start_command(self, child: list[str], *options: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, str(self.archive), "launch", "--termination-log", str(self.log), *options, "--"]
        process = subprocess.Popen([*command, *child], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.running.append(process)
        return process

    def report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.log.read_bytes())
        return content

    def stop(self) -> None:
        for process in self.running:
            process.kill()
            process.communicate()


@pytest.fixture
def launched(archive: Path, tmp_path: Path) -> Iterator[Launched]:
    made = Launched(archive, tmp_path)
    yield made
    made.stop()


def read_line(process: "subprocess.Popen[bytes]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    ("program", "code", "reason"),
    [
        ("sys.exit(0)", 1, "Unknown"),
        ("sys.exit(3)", 3, "Unknown"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "Unknown"),
        ("print('x: error: unrecognized arguments: --y', file=sys.stderr); sys.exit(2)", 2, "BadFlag"),
        (
            f"print('RuntimeError: CUDA out of memory.'); print('''{SIGQUIT}'''); print('thread dump'); "
            "os.kill(os.getpid(), signal.SIGKILL)",
            137,
            "CudaOutOfMemory",
        ),
        (f"print('''{SIGQUIT}'''); os.kill(os.getpid(), signal.SIGKILL)", 137, "Unknown"),
    ],
)
def test_an_end_that_nobody_asked_for_is_a_failure_with_a_report(
    launched: Launched, program: str, code: int, reason: str
) -> None:
    process = launched.start(program)
    _, err = process.communicate()
    assert process.returncode == code
    report = launched.report()
    assert set(report) == {"version", "reason", "phase", "exitCode", "log"}
    assert (report["version"], report["reason"], report["phase"]) == (1, reason, "Starting")
    assert report["exitCode"] == code
    assert f"qwen-runtime: the engine ended with {'signal' if code > 128 else 'exit code'}" in err.decode()


@pytest.mark.parametrize(("command", "code"), [("/no/such/engine", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_start_is_said(launched: Launched, command: str, code: int) -> None:
    process = launched.start_command([command])
    _, err = process.communicate()
    assert process.returncode == code
    assert launched.report()["log"][0].startswith(f"cannot run {command}: ")
    assert f"cannot run {command}" in err.decode()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_engine_has_handlers_ends_it_and_is_no_failure(
    launched: Launched, number: int, code: int
) -> None:
    reset = "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    process = launched.start(reset + "print('up')" + FOREVER)
    assert read_line(process) == "up"
    process.send_signal(number)
    process.communicate()
    assert process.returncode == code
    assert launched.report() == {"version": 1, "asked": True, "phase": "Starting", "log": ["up"]}


def test_only_the_main_process_is_told_and_drains_before_the_rest_is_killed(launched: Launched) -> None:
    program = """
worker = os.fork()
if worker == 0:
    while True: time.sleep(60)
def drain(number, frame):
    time.sleep(0.3)
    print("worker alive" if os.waitpid(worker, os.WNOHANG) == (0, 0) else "worker lost")
    os._exit(0)
signal.signal(signal.SIGTERM, drain)
print(worker)
print("[2026-11-24 16:38:20] The server is fired up and ready to roll!")
"""
    process = launched.start(program + FOREVER)
    worker = int(read_line(process))
    read_line(process)
    process.terminate()
    out, _ = process.communicate()
    assert (process.returncode, out.decode().strip()) == (0, "worker alive")
    assert gone(worker)
    assert launched.log.read_bytes() == b""


SERVES = "print('[2026-11-24 16:38:20] The server is fired up and ready to roll!')\n"


def test_a_frozen_engine_that_is_told_to_end_hung_however_it_ends(launched: Launched) -> None:
    """Its liveness probe is why it was told: in peace (exit code 0), or killed as it does not end."""
    for handler, code in (("lambda *_: os._exit(0)", 0), ("signal.SIG_IGN", 137)):
        program = f"{SERVES}signal.signal(signal.SIGTERM, {handler})\nprint({UNANSWERED!r})"
        process = launched.start(program + FOREVER, "--crash-seconds", "0.2")
        read_line(process)
        read_line(process)
        process.terminate()
        process.communicate()
        report = launched.report()
        assert process.returncode == code
        assert (report["reason"], report["asked"], report["phase"]) == ("Hung", True, "Serving")
        assert report["log"][-1] == UNANSWERED


@pytest.mark.parametrize(("status", "code"), [(None, 143), (503, 143), (200, 0), (404, 0)])
def test_an_engine_that_starts_is_not_waited_for_and_one_that_serves_is(
    launched: Launched, status: int | None, code: int
) -> None:
    """Its log does not tell which it is: its level may be another one."""
    with ready(status) as port:
        program = "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), os._exit(0)))\nprint('up')" + FOREVER
        child = [sys.executable, "-I", "-S", "-u", "-c", IMPORTS + program, f"--port={port}"]
        process = launched.start_command(child, "--start-seconds", "0.2")
        assert read_line(process) == "up"
        process.terminate()
        process.communicate()
    assert process.returncode == code
    assert launched.report() == {"version": 1, "asked": True, "phase": "Starting", "log": ["up"]}


@contextmanager
def ready(status: int | None) -> Iterator[int]:
    """A port at which /ready has this status; None for a port at which nobody listens."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status or 0)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    if status is None:
        server.server_close()
        yield server.server_port
        return
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def test_who_does_not_end_in_the_grace_period_has_left_word_before(launched: Launched) -> None:
    process = launched.start("signal.signal(signal.SIGTERM, lambda *_: print('told'))\n" + SERVES + FOREVER)
    read_line(process)
    process.terminate()
    assert read_line(process) == "told"
    process.kill()
    process.communicate()
    report = launched.report()
    assert (report["asked"], report["phase"], "reason" in report) == (True, "Serving", False)


def test_a_crash_while_draining_is_still_a_failure(launched: Launched) -> None:
    program = "signal.signal(signal.SIGTERM, lambda *_: os._exit(7))\nprint('up')"
    process = launched.start(program + FOREVER)
    read_line(process)
    process.terminate()
    process.communicate()
    assert process.returncode == 7
    assert launched.report()["exitCode"] == 7


def test_no_descendant_outlives_the_main_process(launched: Launched) -> None:
    """One in the group, one in a session of its own with SIGTERM ignored, both holding the output open."""
    program = """
read, write = os.pipe()
for own_session in (False, True):
    if os.fork() == 0:
        if own_session:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if os.fork(): os._exit(0)
        os.write(1, f"{os.getpid()}\\n".encode())  # print writes the number and the end of the line apart
        os.write(write, b"x")
        while True: time.sleep(60)
for _ in range(2): os.read(read, 1)
sys.exit(3)
"""
    process = launched.start(program)
    out, _ = process.communicate()
    pids = [int(line) for line in out.split()]
    assert process.returncode == 3
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_orphans_are_reaped_while_the_engine_runs(launched: Launched) -> None:
    program = """
read, write = os.pipe()
if os.fork() == 0:
    orphan = os.fork()
    if orphan: os.write(write, str(orphan).encode())
    os._exit(0)
os.wait()
orphan = os.read(read, 20).decode()
for _ in range(1000):
    if not os.path.exists("/proc/" + orphan): print("reaped"); break
    time.sleep(0.01)
sys.exit(5)
"""
    out, _ = launched.start(program).communicate()
    assert out.decode().strip() == "reaped"


BIND = "ERROR:    [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([SIGQUIT], "Hung"),
        (["RuntimeError: cannot reshape tensor of 0 elements into shape [0, -1, 32]", SIGQUIT], "TokenizerMissing"),
        ([BIND, "INFO:     Waiting for application shutdown."], "PortInUse"),
    ],
)
def test_an_engine_that_hangs_after_a_known_line_is_killed(launched: Launched, lines: list[str], reason: str) -> None:
    program = f"if os.fork(): print({chr(10).join(lines)!r}, file=sys.stderr)"
    process = launched.start(program + FOREVER, "--crash-seconds", "0.2", "--port-seconds", "0.2")
    _, err = process.communicate()
    assert process.returncode == 137
    assert launched.report()["reason"] == reason
    assert "killed because it did not end by itself" in err.decode()


def test_an_engine_that_ends_by_itself_after_a_crash_keeps_its_exit_code(launched: Launched) -> None:
    process = launched.start(f"print('''{SIGQUIT}'''); time.sleep(0.3); sys.exit(9)", "--crash-seconds", "50")
    process.communicate()
    assert process.returncode == 9


def test_output_arrives_whole_and_a_reader_that_does_not_read_delays_no_signal(launched: Launched) -> None:
    program = """
signal.signal(signal.SIGTERM, lambda *_: open(sys.argv[1], "w").close())
os.write(2, b"\\r 10%\\r 20%")
for number in range(40000):
    print("line", number, "x" * 40)
sys.stdout.write("the end without a line end")
sys.exit(4)
"""
    mark = launched.folder / "told"
    child = [sys.executable, "-I", "-S", "-c", IMPORTS + program, str(mark)]
    process = launched.start_command(child)
    assert process.stderr is not None
    assert os.read(process.stderr.fileno(), 10) == b"\r 10%\r 20%"
    process.terminate()
    while not mark.exists():
        assert process.poll() is None
        time.sleep(0.01)
    out, _ = process.communicate()
    lines = "".join(f"line {number} {'x' * 40}\n" for number in range(40000))
    expected = lines.encode() + b"the end without a line end"
    assert hashlib.sha256(out).hexdigest() == hashlib.sha256(expected).hexdigest()
    assert process.returncode == 4
    assert "the end without a line end" in launched.report()["log"][-2:]  # the bar on the other stream may end later


def test_the_phase_of_death_is_reported(launched: Launched) -> None:
    process = launched.start("print('Load weight begin. avail mem=1 GB'); sys.exit(1)")
    process.communicate()
    assert launched.report()["phase"] == "LoadWeights"


def never(_path: str) -> bool:
    return False


def log_with(*lines: str) -> EngineLog:
    log = EngineLog(KNOWN, Patience(), lambda: 0.0)
    for line in lines:
        log.observe(line)
    return log


KILLED = (
    "[2026-11-24 16:35:23] Subprocess scheduler_0 (pid=39) crashed with exit code -9. Triggering SIGQUIT for cleanup"
)
UNANSWERED = (
    "[2026-11-24 16:38:43] Health check failed. Server couldn't get a response from detokenizer for last 20 seconds."
)
ANSWERED = '[2026-11-24 16:38:49] INFO:     127.0.0.1:51648 - "GET /health HTTP/1.1" 200 OK'
RESET = "gloo/transport/tcp/pair.cc:545 Connection reset by peer"


@pytest.mark.parametrize(
    ("ending", "lines", "reason"),
    [
        (Ending(-9, asked=False, hung=False, oom_kills=None), ["loading"], "HostOutOfMemory"),
        (Ending(-9, asked=False, hung=False, oom_kills=0), ["loading"], "EngineKilled"),
        (Ending(-9, asked=False, hung=False, oom_kills=1), [SIGQUIT], "HostOutOfMemory"),
        (Ending(-9, asked=False, hung=False, oom_kills=None), [SIGQUIT], "Unknown"),
        (Ending(-9, asked=False, hung=False, oom_kills=1), [RESET, SIGQUIT], "HostOutOfMemory"),
        (Ending(1, asked=False, hung=False, oom_kills=1), ["OSError: No space left on device"], "DiskFull"),
        (Ending(-9, asked=False, hung=True, oom_kills=0), [SIGQUIT], "Hung"),
        (Ending(-9, asked=False, hung=False, oom_kills=0), [KILLED, SIGQUIT], "EngineKilled"),
        (Ending(-9, asked=False, hung=False, oom_kills=1), [KILLED, SIGQUIT], "HostOutOfMemory"),
        (Ending(-9, asked=False, hung=False, oom_kills=None), [KILLED, SIGQUIT], "HostOutOfMemory"),
        # Processes that the engine killed in its own crash.
        (Ending(-9, asked=False, hung=False, oom_kills=0), ["an error", SIGQUIT, KILLED], "Unknown"),
        (Ending(-9, asked=True, hung=True, oom_kills=0), [UNANSWERED], "Hung"),
        (Ending(-9, asked=False, hung=False, oom_kills=0), [UNANSWERED, ANSWERED, SIGQUIT], "Unknown"),
    ],
)
def test_the_kernels_word_explains_what_the_log_cannot(ending: Ending, lines: list[str], reason: str) -> None:
    assert verdict(ending, log_with(*lines), never).reason.value == reason


CAUSE = "torch.OutOfMemoryError: CUDA out of memory."


@pytest.mark.parametrize(
    ("lines", "first", "last"),
    [
        # Stack dumps and consequences after the cause are left out...
        ([*(f"before {n}" for n in range(20)), CAUSE, *(f"after {n}" for n in range(50))], "before 11", CAUSE),
        # ...and a cause that is no longer kept still ends the log.
        ([CAUSE, SIGQUIT, *(f"after {n}" for n in range(500))], "after 491", CAUSE),
        # Nothing known: the exception before the crash.
        ([*(f"b {n}" for n in range(20)), "x.FooError: why", SIGQUIT, "y.BarError: then"], "b 11", "x.FooError: why"),
        ([*(f"before {n}" for n in range(20))], "before 10", "before 19"),
    ],
)
def test_the_log_of_a_report_ends_with_the_cause(lines: list[str], first: str, last: str) -> None:
    log = log_with(*lines)
    ending = Ending(1, asked=False, hung=False, oom_kills=None)
    shown = failure_report(ending, log, verdict(ending, log, never))["log"]
    assert (len(shown), shown[0], shown[-1]) == (10, first, last)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda folder: (folder / "v2").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n"), 2),
        (lambda folder: (folder / "v1").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"), 5),
        (lambda _folder: None, None),
    ],
)
def test_oom_kills_are_read_from_either_cgroup_version(
    tmp_path: Path, write: Callable[[Path], object], expected: int | None
) -> None:
    write(tmp_path)
    assert oom_kills((tmp_path / "v2", tmp_path / "v1")) == expected


def lock_is_free(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_a_cached_model_is_held_until_the_engine_has_ended(launched: Launched, tmp_path: Path) -> None:
    held = tmp_path / ".in-use"
    held.touch()
    process = launched.start("print('up', flush=True)" + FOREVER, f"--hold={held}")
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    assert not lock_is_free(held)
    process.terminate()
    process.wait()
    assert lock_is_free(held)


def test_who_is_asked_to_end_while_it_waits_for_its_model_starts_no_engine(launched: Launched, tmp_path: Path) -> None:
    """As process 1 of a container it would not even get the signal if it had no handler."""
    held = tmp_path / ".in-use"
    held.touch()
    descriptor = os.open(held, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    process = launched.start("print('never')", f"--hold={held}")
    caught = Path(f"/proc/{process.pid}/status")
    while not int(re.findall(r"SigCgt:\s*(\S+)", caught.read_text())[0], 16) >> (signal.SIGTERM - 1) & 1:
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    output, _ = process.communicate()
    assert (process.returncode, output) == (143, b"")
    os.close(descriptor)


def test_a_cached_model_that_is_gone_is_told(launched: Launched, tmp_path: Path) -> None:
    process = launched.start("print('never')", f"--hold={tmp_path}/gone/.in-use")
    output, _ = process.communicate()
    assert (process.returncode, output) == (1, b"")
    report = launched.report()
    assert (report["reason"], report["phase"]) == ("ModelNotFound", "Starting")
    assert "no longer in the cache: delete this pod" in report["log"][0]


def test_a_start_shows_how_far_it_is_on_a_page_of_its_own(launched: Launched) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    begin = "[2026-11-23 10:16:57] Load weight begin. avail mem=17.09 GB"
    bar = "\\rMulti-thread loading shards:  43% Completed | 3/7 [00:11<00:15,  3.8s/it]"
    program = f"sys.stderr.write('''{begin}\\n{bar}'''); sys.stderr.flush(); print('up')"
    process = launched.start(program + FOREVER, f"--start-port={port}")
    assert read_line(process) == "up"
    deadline, page = time.monotonic() + 30, dict[str, Any]()
    while not page.get("stepsTotal") and time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=30) as answer:
            page = json.load(answer)
    assert page | {"milliseconds": 0} == {
        "version": 1,
        "phase": "LoadWeights",
        "stepsDone": 3,
        "stepsTotal": 7,
        "milliseconds": 0,
    }
    process.terminate()
    process.communicate()
    assert process.returncode == 143


def test_a_port_in_use_leaves_the_engine_without_a_page(launched: Launched) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        process = launched.start("print('up')", f"--start-port={taken.getsockname()[1]}")
        assert read_line(process) == "up"
        process.communicate()
