"""Adapters that change while an engine runs: the loader against an engine in memory, and its calls over HTTP."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qwen_runtime import adapter_list
from qwen_runtime.adapter_list import digest, read_list, with_option
from qwen_runtime.adapters import RETRY_SECONDS, UNLOAD_SECONDS, Loader, LoopbackEngine
from qwen_runtime.hold import NotHeld

A, B = "/models/adapters/claim/a", "/models/adapters/claim/b"


class Engine:
    """Loads what is not `broken`."""

    def __init__(self, **has: str) -> None:
        self.has, self.serves, self.broken = has, True, set[str]()
        self.calls: list[str] = []
        self.why = ""

    def loaded(self) -> dict[str, str] | None:
        return dict(self.has) if self.serves else None

    def load(self, name: str, folder: str) -> str:
        self.calls.append(f"load {name}")
        if name in self.broken:
            return self.why or f"no file in {folder}"
        self.has[name] = folder
        return ""

    def unload(self, name: str) -> str:
        self.calls.append(f"unload {name}")
        return "" if self.has.pop(name, None) else f"{name} is not loaded"


class Pod:
    """A pod with the files of its annotations, and time that a test moves."""

    def __init__(self, folder: Path, **has: str) -> None:
        self.folder, self.now, self.engine = folder, 1000.0, Engine(**has)
        self.loader = Loader(folder, self.engine, lambda: self.now)

    def wants(self, loaded: str = "", **wanted: str) -> str:
        text = json.dumps(wanted)
        (self.folder / "wanted").write_text(text)
        (self.folder / "loaded").write_text(loaded)
        return digest(text)

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.25
            self.loader.step()


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path, a=A)


def test_an_added_adapter_is_loaded_at_once_and_the_page_says_which_list_it_is(pod: Pod) -> None:
    first = pod.wants(a=A)
    assert pod.loader.page() == {"wanted": "", "loaded": [], "failed": {}}
    pod.wait(1)
    assert pod.loader.page() == {"wanted": first, "loaded": ["a"], "failed": {}}
    second = pod.wants(a=A, b=B)
    assert pod.loader.page()["wanted"] == first
    pod.wait(0.25)
    assert pod.loader.page() == {"wanted": second, "loaded": ["a", "b"], "failed": {}}
    assert pod.engine.calls == ["load b"]


def test_a_removed_adapter_stays_for_late_requests_and_is_then_unloaded(pod: Pod) -> None:
    pod.wants(a=A, b=B)
    pod.wait(1)
    pod.wants(b=B)
    pod.wait(UNLOAD_SECONDS - 1)
    assert pod.engine.has == {"a": A, "b": B}
    assert pod.loader.page()["loaded"] == ["b"]
    pod.wait(2)
    assert pod.engine.has == {"b": B}
    # A late request made SGLang load it again.
    pod.engine.has["a"] = A
    pod.wait(120)
    assert pod.engine.has == {"b": B}


def test_one_that_comes_back_in_time_is_never_unloaded(pod: Pod) -> None:
    pod.wants(b=B)
    pod.wait(UNLOAD_SECONDS / 2)
    pod.wants(a=A, b=B)
    pod.wait(60)
    assert pod.engine.calls == ["load b"]


def test_an_adapter_that_cannot_be_loaded_keeps_nothing_else_and_is_tried_again(pod: Pod) -> None:
    pod.engine.broken = {"b"}
    wanted = pod.wants(a=A, b=B, c=A)
    pod.wait(1)
    assert pod.loader.page() == {"wanted": wanted, "loaded": ["a", "c"], "failed": {"b": f"no file in {B}"}}
    assert pod.engine.calls.count("load b") == 1
    pod.engine.broken = set()
    pod.wait(RETRY_SECONDS)
    assert pod.loader.page() == {"wanted": wanted, "loaded": ["a", "b", "c"], "failed": {}}


def test_before_the_engine_serves_nothing_is_asked_of_it(pod: Pod) -> None:
    pod.engine.serves = False
    pod.wants(a=A, b=B)
    pod.wait(5)
    assert (pod.engine.calls, pod.loader.page()["wanted"]) == ([], "")
    pod.engine.serves = True
    pod.wait(1)
    assert pod.loader.page()["loaded"] == ["a", "b"]


def test_another_folder_under_the_same_name_replaces_the_first(pod: Pod) -> None:
    pod.wants(a=B)
    pod.wait(1)
    assert (pod.engine.calls, pod.engine.has) == (["unload a", "load a"], {"a": B})


STARTS: dict[str, tuple[dict[str, str], str, list[str]]] = {
    "as it began": ({"a": A, "b": B}, "a,b", ["--lora-paths", f"a={A}", f"b={B}"]),
    "one was removed": ({"b": B}, "b", [f"--lora-paths=b={B}"]),
    "one was added and loaded": ({"a": A, "b": B, "c": A}, "a,b,c", ["--lora-paths", f"a={A}", f"b={B}", f"c={A}"]),
    "one could never be loaded": ({"a": A, "bad": B}, "a", [f"--lora-paths=a={A}"]),
    "nothing is left of the first ones": ({"c": A}, "", []),
}


@pytest.mark.parametrize(("wanted", "loaded", "words"), STARTS.values(), ids=STARTS.keys())
def test_a_container_that_starts_again_begins_with_what_the_engine_had(
    pod: Pod, wanted: dict[str, str], loaded: str, words: list[str]
) -> None:
    pod.wants(loaded, **wanted)
    command = ["sglang", "--enable-lora", "--lora-paths", f"a={A}", f"b={B}", "--port=8000"]
    assert pod.loader.command(command) == ["sglang", "--enable-lora", *words, "--port=8000"]


@pytest.mark.parametrize("text", ["", "[", "[]", '{"a": "/etc"}', '{"a": "/models/adapters/../x"}', '{"a b": "/x"}'])
def test_a_list_that_nobody_wrote_changes_nothing(pod: Pod, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    (pod.folder / "wanted").write_text(text)
    assert pod.loader.command(["sglang", "--lora-paths=a=/x"]) == ["sglang", "--lora-paths=a=/x"]
    pod.wait(60)
    assert pod.engine.calls == []
    assert capfd.readouterr().err.count("cannot be read") == bool(text)
    with pytest.raises(ValueError, match=r"Expecting|it is not|it has"):
        read_list(text)


def test_a_list_that_is_nested_too_deeply_is_a_bad_list(pod: Pod, capfd: pytest.CaptureFixture[str]) -> None:
    (pod.folder / "wanted").write_text("[" * 60_000)
    assert pod.loader.command(["sglang", "--lora-paths=a=/x"]) == ["sglang", "--lora-paths=a=/x"]
    pod.wait(5)
    assert capfd.readouterr().err.count("cannot be read: it is nested too deeply") == 1
    pod.wants(a=A, b=B)
    pod.wait(1)
    assert pod.engine.has == {"a": A, "b": B}


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES], ids=["ESTALE", "EIO", "EACCES"])
def test_files_that_nobody_can_look_at_are_not_there_yet(
    fetching: Pod, cache: Cache, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def stat(path: Path, **_: bool) -> os.stat_result:
        raise OSError(number, os.strerror(number), str(path))

    wanted = fetching.wants(a=cache.path("a"), b=cache.fetch("b"), c=f"{cache.root}/claim/c")
    with monkeypatch.context() as broken:
        broken.setattr(Path, "stat", stat)
        broken.setattr(Path, "is_file", lambda path: bool(stat(path)))
        fetching.wait(5)
        assert fetching.loader.page() == {"wanted": wanted, "loaded": ["a", "c"], "failed": {}}
        assert LoopbackEngine().load("b", cache.path("b")).endswith("has no adapter_config.json")
    fetching.wait(1)
    assert fetching.loader.page() == {"wanted": wanted, "loaded": ["a", "b", "c"], "failed": {}}


def test_whatever_fails_the_list_is_followed_again_later(
    pod: Pod, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = pod.engine.loaded

    def broken() -> dict[str, str]:
        raise RuntimeError("no such layer")

    pod.wants(a=A, b=B)
    monkeypatch.setattr(pod.engine, "loaded", broken)
    for _ in range(9):
        pod.loader.look()
    said = "the list of adapters cannot be followed at present: RuntimeError: no such layer"
    assert capfd.readouterr().err.count(said) == 1
    monkeypatch.setattr(pod.engine, "loaded", loaded)
    pod.loader.look()
    assert pod.engine.has == {"a": A, "b": B}


def test_a_long_fault_fits_into_the_page(pod: Pod) -> None:
    names = {f"n{number:039}": B for number in range(16)}
    pod.engine.broken = set(names)
    pod.engine.why = '"' * 5000
    pod.wants(**names)
    pod.wait(1)
    assert len(json.dumps(pod.loader.page())) < 3500


@pytest.mark.parametrize(
    ("words", "values", "result"),
    [
        ("a --x 1 2 --b", ("3",), "a --x=3 --b"),
        ("a --x=1 --b", ("3", "4"), "a --x 3 4 --b"),
        ("a --x 1", (), "a"),
        ("a --xy 1", ("2",), "a --xy 1 --x=2"),
    ],
)
def test_an_option_gets_other_values_in_its_place(words: str, values: tuple[str, ...], result: str) -> None:
    assert " ".join(with_option(words.split(), "--x", values)) == result


class Cache:
    """The folder with fetched adapters, and the locks on them as another process sees them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> str:
        return f"{self.root}/.fetched/hf--team--{name}/c"

    def fetch(self, name: str) -> str:
        """As the container that fetches does it: complete, in one step."""
        made = self.root / f"new-{name}"
        made.mkdir()
        for file in ("adapter_config.json", ".in-use"):
            (made / file).write_text("{}")
        Path(self.path(name)).parent.mkdir(parents=True, exist_ok=True)
        made.rename(self.path(name))
        return self.path(name)

    def is_used(self, name: str) -> bool:
        with Path(self.path(name), ".in-use").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(adapter_list, "ROOT", f"{tmp_path}/")
    return Cache(tmp_path)


@pytest.fixture
def fetching(tmp_path: Path, cache: Cache) -> Pod:
    made = Pod(tmp_path, a=cache.fetch("a"))
    made.loader.fetched = f"{cache.root}/.fetched/"
    return made


def test_a_fetched_adapter_is_loaded_as_soon_as_it_is_there_and_is_locked(fetching: Pod, cache: Cache) -> None:
    wanted = fetching.wants(a=cache.path("a"), b=cache.path("b"), c=cache.fetch("c"))
    fetching.wait(300)
    assert fetching.loader.page() == {"wanted": wanted, "loaded": ["a", "c"], "failed": {}}
    assert fetching.engine.calls == ["load c"]
    cache.fetch("b")
    assert not cache.is_used("b")
    fetching.wait(0.25)
    assert fetching.loader.page() == {"wanted": wanted, "loaded": ["a", "b", "c"], "failed": {}}
    assert cache.is_used("b")


def test_a_cache_may_remove_what_the_engine_has_no_more(fetching: Pod, cache: Cache) -> None:
    fetching.wants("a", a=cache.path("a"))
    fetching.loader.hold()
    assert cache.is_used("a")
    fetching.wants("b", b=cache.fetch("b"))
    fetching.wait(UNLOAD_SECONDS - 1)
    assert cache.is_used("a"), "late requests may still use it"
    fetching.wait(2)
    assert (cache.is_used("a"), cache.is_used("b")) == (False, True)


def test_what_the_engine_cannot_load_may_be_removed_and_is_loaded_when_it_comes_again(
    fetching: Pod, cache: Cache
) -> None:
    fetching.engine.broken = {"b"}
    wanted = fetching.wants(a=cache.path("a"), b=cache.fetch("b"))
    fetching.wait(1)
    assert "b" in fetching.loader.page()["failed"]
    assert not cache.is_used("b")
    shutil.rmtree(cache.path("b"))
    fetching.engine.broken = set()
    fetching.wait(RETRY_SECONDS + 1)
    assert fetching.loader.page() == {"wanted": wanted, "loaded": ["a"], "failed": {}}
    cache.fetch("b")
    fetching.wait(0.25)
    assert fetching.loader.page()["loaded"] == ["a", "b"]


def test_one_that_another_process_removes_is_not_loaded(fetching: Pod, cache: Cache) -> None:
    fetching.wants(a=cache.path("a"), b=cache.fetch("b"))
    with Path(cache.path("b"), ".in-use").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fetching.wait(1)
        assert fetching.engine.calls == []
        assert "holds the lock" in fetching.loader.page()["failed"]["b"]
    fetching.wait(RETRY_SECONDS)
    assert fetching.engine.calls[-1] == "load b"


def test_an_engine_does_not_start_without_a_fetched_adapter_that_it_had(fetching: Pod, cache: Cache) -> None:
    fetching.wants("a,b", a=cache.path("a"), b=cache.path("b"), c=cache.path("c"))
    with pytest.raises(NotHeld, match="is no longer in the cache: delete this pod"):
        fetching.loader.hold()
    cache.fetch("b")
    fetching.loader.hold()
    assert [cache.is_used(name) for name in "ab"] == [True, True]
    assert f"b={cache.path('b')}" in fetching.loader.command(["sglang", "--lora-paths", "x=/y"])


@contextmanager
def sglang(ready: int = 200) -> Iterator[tuple[LoopbackEngine, list[tuple[str, object]]]]:
    """The calls of SGLang's server, with its answers."""
    seen: list[tuple[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            models = [{"id": "m", "root": "m", "parent": None}, {"id": "a", "root": A, "parent": "m"}]
            self._answer(ready if self.path == "/ready" else 200, {"data": models})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, body))
            good = body["lora_name"] != "bad"
            self._answer(200 if good else 400, {"success": good, "error_message": "" if good else "no such file"})

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield LoopbackEngine(server.server_address[1]), seen
    finally:
        server.shutdown()
        server.server_close()


def test_the_calls_of_sglang(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    folder = str(tmp_path)
    with sglang() as (engine, seen):
        assert engine.loaded() == {"a": A}
        assert engine.load("b", folder) == ""
        assert engine.load("bad", folder) == "no such file"
        assert engine.load("b", B) == f"{B} has no adapter_config.json"
        assert engine.unload("b") == ""
    assert seen[0] == ("/load_lora_adapter", {"lora_name": "b", "lora_path": folder})
    assert seen[-1] == ("/unload_lora_adapter", {"lora_name": "b"})
    assert engine.loaded() is None
    assert engine.load("b", folder).startswith("the engine does not answer")


def test_an_engine_that_is_not_ready_yet_has_nothing() -> None:
    with sglang(ready=503) as (engine, _):
        assert engine.loaded() is None
