"""Phases, the two hangs, what is kept of a log, and how bytes become lines."""

import itertools
import json
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_runtime.engine_log import EngineLog, Patience, clean
from qwen_runtime.output import LineSplitter, pump
from qwen_runtime.progress import start_page
from tests.unit.runtime.known import KNOWN

SIGQUIT = "[2026-11-23 10:16:57 TP0] SIGQUIT received. signum=None, frame=None. It usually means one child failed."
BIND = "ERROR:    [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use"
STAMP = "[2026-11-24 16:32:56] "
SHUTDOWN = "INFO:     Waiting for application shutdown."


class Clock:
    """A clock that stands until it is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def engine_log(*lines: str, clock: Clock | None = None) -> EngineLog:
    log = EngineLog(KNOWN, Patience(), clock or Clock())
    for line in lines:
        log.observe(line)
    return log


def test_phases_follow_the_log_of_a_start() -> None:
    start = [
        ("[2026-11-23 10:16:57] server_args={'model_path': 'The server is fired up and ready to roll!'}", "Starting"),
        ("[2026-11-23 10:16:57] Init parallel begin.", "Starting"),
        ("[2026-11-23 10:16:57 TP0] Load weight begin. avail mem=17.09 GB", "LoadWeights"),
        ("[2026-11-23 10:16:57] Memory pool end. avail mem=17.08 GB", "LoadWeights"),
        (
            "[2026-11-23 10:16:58] Capture decode CUDA graph begin. backend=full, bs=[1], avail mem=9 GB",
            "CaptureGraphs",
        ),
        ("[2026-11-23 10:16:58 TP1] Load weight begin. avail mem=17.09 GB", "CaptureGraphs"),
        ("[2026-11-23 10:16:59] Engine startup timings (s): load_weight=0.01, kv_cache_allocation=0.32", "WarmUp"),
        ("INFO:     Uvicorn running on http://127.0.0.1:31020 (Press CTRL+C to quit)", "WarmUp"),
        ("50% |##[2026-11-23 10:17:00] The server is fired up and ready to roll!", "Serving"),
        ("INFO:     Uvicorn running on http://127.0.0.1:31020 (Press CTRL+C to quit)", "Serving"),
    ]
    log = engine_log()
    for line, phase in start:
        log.observe(line)
        assert (line, log.phase.value) == (line, phase)


@pytest.mark.parametrize(
    ("lines", "deadline"),
    [
        ([SIGQUIT], 1090.0),
        (["[2026-11-23 10:16:57] Received sigquit from a child process. It usually means the child failed."], 1090.0),
        ([BIND, SHUTDOWN], 1030.0),
        ([STAMP + BIND, STAMP + SHUTDOWN], 1030.0),
        ([SIGQUIT, BIND, SHUTDOWN], 1030.0),
        ([BIND], None),
        ([SHUTDOWN], None),
        ([SHUTDOWN, BIND], None),
        (['INFO:     1.2.3.4:5 - "POST /v1/x SIGQUIT received. HTTP/1.1" 404 Not Found'], None),
    ],
)
def test_an_end_is_expected_after_a_crash_and_after_a_failed_bind(lines: list[str], deadline: float | None) -> None:
    assert engine_log(*lines).deadline == deadline


def test_a_second_crash_line_does_not_prolong_the_wait() -> None:
    clock = Clock()
    log = engine_log(SIGQUIT, clock=clock)
    clock.now = 1050.0
    log.observe(SIGQUIT)
    assert log.deadline == 1090.0


def test_the_cause_is_sought_before_the_crash_line_and_in_the_last_ten_minutes() -> None:
    clock = Clock()
    log = engine_log("an old error", clock=clock)
    clock.now = 1000.0 + 601
    for line in ("the cause", SIGQUIT, "a stack dump"):
        log.observe(line)
    assert log.before_crash() == ["the cause", SIGQUIT]
    assert log.recent() == ["the cause", SIGQUIT, "a stack dump"]
    assert log.tail(3) == ["the cause", SIGQUIT, "a stack dump"]
    assert engine_log("no crash").before_crash() == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[t] server_args={'api_key': 'sekret'}", "[t] server_args=***"),
        ("error: unrecognized arguments: --api-key sekret --x", "error: unrecognized arguments: --api-key *** --x"),
        ("admin_api_key='sekret', port=1", "admin_api_key='***', port=1"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("token hf_abcdefghIJKL used", "token *** used"),
        ("\x1b[31mred\x1b[0m\x00 \ttext ", "red \ttext"),
        ("x" * 5000, "x" * 2000),
    ],
)
def test_a_kept_line_has_no_secrets_and_no_control_characters(line: str, expected: str) -> None:
    assert clean(line) == expected


LOADS = STAMP + "Load weight begin. avail mem=17.09 GB"
CAPTURES = STAMP + "Capture decode CUDA graph begin. backend=full, bs=[1, 2], avail mem=9 GB"


@pytest.mark.parametrize(
    ("begin", "bar", "steps"),
    [
        # The first two are from SGLang 0.5.23 on a CPU, the others have the formats of its loaders and of tqdm.
        (LOADS, "Multi-thread loading shards: 100% Completed | 1/1 [00:00<00:00, 1011.89it/s]", (1, 1)),
        (LOADS, "Multi-thread loading shards:   0% Completed | 0/7 [00:00<?, ?it/s]", (0, 7)),
        (LOADS, "Loading safetensors checkpoint shards:  43% Completed | 3/7 [00:11<00:15,  3.8s/it]", (3, 7)),
        (LOADS, "Multi-thread loading pt checkpoint shards:  50% Completed | 1/2 [00:11<00:11, 11.2s/it]", (1, 2)),
        (LOADS, "Loading safetensors using Fastsafetensor loader:  43%|████▎     | 3/7 [00:01<00:02, 2.1it/s]", (3, 7)),
        (
            CAPTURES,
            "Capturing batches (bs=8 avail_mem=9.01 GB):  50%|█████     | 18/36 [00:03<00:03, 5.1it/s]",
            (18, 36),
        ),
        (CAPTURES, "  0%|          | 0/36 [00:00<?, ?it/s]", (0, 36)),
        (CAPTURES, "Loading safetensors checkpoint shards:  43% Completed | 3/7 [00:11<00:15,  3.8s/it]", (0, 0)),
        (LOADS, "Capturing batches (bs=8 avail_mem=9.01 GB):  50%|█████     | 18/36 [00:03<00:03, 5.1it/s]", (0, 0)),
        (LOADS, "Multi-thread loading shards:  43% Comp", (0, 0)),
        (LOADS, "Loading x | 9/7 [", (7, 7)),
        (LOADS, "Loading x | 99999999/99999999 [", (0, 0)),
        ("Init parallel begin.", "Loading safetensors checkpoint shards:  43% Completed | 3/7 [00:11<00:15]", (0, 0)),
    ],
)
def test_a_progress_bar_says_how_far_its_phase_is(begin: str, bar: str, steps: tuple[int, int]) -> None:
    for show in (EngineLog.glance, EngineLog.observe):
        log = engine_log(begin)
        show(log, bar)
        assert log.steps == steps


def test_a_new_phase_begins_with_nothing_done() -> None:
    clock = Clock()
    log = engine_log(clock=clock)
    assert (log.steps, log.phase_seconds()) == ((0, 0), 0.0)
    log.observe(LOADS)
    clock.now += 7
    log.glance("Loading safetensors checkpoint shards:  43% Completed | 3/7 [00:11<00:15,  3.8s/it]")
    assert (log.steps, log.phase_seconds()) == ((3, 7), 7.0)
    assert json.loads(start_page(log)) == {
        "version": 1,
        "phase": "LoadWeights",
        "stepsDone": 3,
        "stepsTotal": 7,
        "milliseconds": 7000,
    }
    log.observe(CAPTURES)
    assert (log.steps, log.phase_seconds()) == ((0, 0), 0.0)


def lines_of(*chunks: bytes) -> list[str]:
    splitter = LineSplitter()
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return lines + splitter.finish()


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"a\nb\n"], ["a", "b"]),
        ([b"a", b"b\nc"], ["ab", "c"]),
        ([b"a\r\nb\r", b"\nc"], ["a", "b", "c"]),
        ([b"\r  0%", b"\r 50%\r100%\r", b"\nend"], ["100%", "end"]),
        ([b"caf\xc3", b"\xa9\n\xff\n"], ["café", "�"]),
        ([b"x" * 40_000, b"y\nz"], ["x" * 16_384, "z"]),
        ([b"x" * 40_000, b"\rnew\n"], ["new"]),
    ],
)
def test_bytes_become_lines_and_a_bar_keeps_its_last_state(chunks: list[bytes], lines: list[str]) -> None:
    assert lines_of(*chunks) == lines


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=5))
def test_lines_do_not_depend_on_how_the_bytes_arrive(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    chunks = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert lines_of(*chunks) == lines_of(data)


def test_reading_goes_on_when_the_sink_is_gone() -> None:
    """More than a pipe holds: a pump that stops reading would block the writer, and with it the engine."""
    source_read, source_write = os.pipe()
    sink_read, sink_write = os.pipe()
    os.close(sink_read)
    seen: list[str] = []
    thread = threading.Thread(target=pump, args=(source_read, sink_write, seen.append))
    thread.start()
    for number in range(30_000):
        os.write(source_write, b"line %d\n" % number)
    os.close(source_write)
    thread.join()
    os.close(sink_write)
    assert (len(seen), seen[-1]) == (30_000, "line 29999")


def test_a_line_without_an_end_is_shown_in_each_of_its_states() -> None:
    read, write = os.pipe()
    sink = os.open(os.devnull, os.O_WRONLY)
    shown, lines, seen = list[str](), list[str](), threading.Event()

    def glance(text: str) -> None:
        shown.append(text)
        seen.set()

    os.write(write, b"begin\n\r 10%")
    reader = threading.Thread(target=pump, args=(read, sink, lines.append, glance))
    reader.start()
    for state in (b"\r 20%", b"\r 30%"):
        assert seen.wait(30)
        seen.clear()
        os.write(write, state)
    assert seen.wait(30)
    os.write(write, b"\n")
    os.close(write)
    reader.join(30)
    os.close(sink)
    assert (lines, shown) == (["begin", " 30%"], [" 10%", " 20%", " 30%"])
