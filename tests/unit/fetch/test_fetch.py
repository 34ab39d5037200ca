"""Downloads from a hub on loopback: what arrives, what is checked, what a person reads if it cannot work."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_operator.api.conditions import FETCH_FAILURES, Reason
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.fetch import joining, program
from qwen_operator.fetch.faults import FetchError
from qwen_operator.fetch.files import RemoteFile
from qwen_operator.fetch.program import Fetch, Place
from qwen_operator.fetch.progress import Progress
from qwen_operator.fetch.store import Entry, Store, read_manifest, used_bytes
from qwen_operator.fetch.transfer import THREADS, Chunk, Journal, Transfer
from qwen_operator.fetch.wire import Busy, Client, Remote, certificates
from qwen_operator.hubs.pauses import LONGEST_SECONDS, asked_pause
from qwen_runtime.adapter_list import IN_USE
from qwen_runtime.page import showing
from tests.unit.fetch.hub import COMMIT, REPOSITORY, FileHub, checksum, serving
from tests.unit.fetch.tls import certificate
from tests.unit.runtime.checkpoint import CONFIG, header
from tests.unit.runtime.gguf_files import qwen2

GIB = 1 << 30
CHUNK = 100_000
SHARD = "model-2.safetensors"


def model(size: int = 1_000_000) -> dict[str, bytes]:
    """A repository with two shards, and with files that no engine needs."""
    sizes = {"model.embed_tokens.weight": size // 2 * 2}
    data = random.Random(0).randbytes(sizes["model.embed_tokens.weight"])
    return {
        "README.md": b"#",
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": b"{}",
        "model-1.safetensors": header(sizes) + data,
        "model-2.safetensors": header({"model.norm.weight": 36}) + bytes(36),
        "pytorch_model.bin": b"twice",
        "original/consolidated.safetensors": b"twice",
        "figures/plot.json": b"{}",
        "1_Pooling/config.json": b"{}",
        "../up.json": b"{}",
        ".hidden.json": b"{}",
    }


WANTED = {"config.json", "tokenizer.json", "model-1.safetensors", "model-2.safetensors", "1_Pooling/config.json"}


def fetching(hub: FileHub, root: Path, **changes: Any) -> Fetch:
    kind = changes.pop("kind", Hub.HUGGING_FACE)
    token, limit = changes.pop("token", ""), changes.pop("limit", GIB)
    remote = Remote(kind, hub.address, REPOSITORY, changes.pop("commit", COMMIT), token, changes.pop("file", ""))
    place = Place(root, limit, changes.pop("pod", "chat-0"), 0)
    options: dict[str, Any] = {"say": lambda _line: None, "sleep": lambda _seconds: None, "patience": 5.0}
    options["chunk_bytes"] = CHUNK
    return Fetch(remote, place, **options | changes)


def refusal(hub: FileHub, root: Path, **changes: Any) -> FetchError:
    with pytest.raises(FetchError) as refused:
        fetching(hub, root, **changes).run()
    assert refused.value.reason in FETCH_FAILURES
    assert json.loads(refused.value.report())["reason"] == refused.value.reason
    return refused.value


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if not path.name.startswith(".")}


@pytest.mark.parametrize("kind", list(Hub))
def test_what_an_engine_needs_arrives_and_nothing_else(kind: Hub, tmp_path: Path) -> None:
    with serving(FileHub(model())) as hub:
        folder = fetching(hub, tmp_path, kind=kind).run()
        assert contents(folder) == {name: hub.files[name] for name in WANTED}
        assert folder == tmp_path / "models" / kind / "Qwen--Test" / COMMIT
        manifest = read_manifest(folder)
        assert manifest is not None
        assert {file.path for file in manifest} == WANTED
        assert (folder / IN_USE).exists()
        assert list((tmp_path / "partial").iterdir()) == []


def test_the_second_time_the_hub_is_not_asked(tmp_path: Path) -> None:
    with serving(FileHub(model())) as hub:
        first = fetching(hub, tmp_path).run()
        hub.asked.clear()
        again = fetching(hub, tmp_path, pod="chat-1")
        assert again.run() == first
        assert (hub.asked, again.progress.total, again.progress.received) == ([], 0, 0)


def test_the_end_says_how_much_came_from_the_hub(tmp_path: Path) -> None:
    with serving(FileHub(model())) as hub:
        for count in (sum(len(hub.files[name]) for name in WANTED), 0):
            told = tmp_path / "told"
            assert program.main(fetching(hub, tmp_path / "cache"), told) == 0
            assert json.loads(told.read_text())["hubBytes"] == count


def test_the_folder_for_compiled_code_is_for_every_user(tmp_path: Path) -> None:
    with serving(FileHub(model())) as hub:
        fetch = fetching(hub, tmp_path)
        replace(fetch, place=replace(fetch.place, compile_folder="compile/a-b")).run()
    assert (tmp_path / "compile/a-b").stat().st_mode & 0o777 == 0o777
    assert (tmp_path / "compile").stat().st_mode & 0o777 == 0o777


def gguf_hub(file: bytes) -> FileHub:
    return FileHub(model() | {"q4/a.gguf": file, "q8/b.gguf": qwen2("Q8_0").bytes()})


def test_of_a_gguf_repository_only_the_named_file_is_loaded(tmp_path: Path) -> None:
    content = qwen2().bytes()
    with serving(gguf_hub(content)) as hub:
        folder = fetching(hub, tmp_path, file="q4/a.gguf").run()
        assert contents(folder) == {"q4/a.gguf": content}
        assert folder.name.startswith(f"{COMMIT}-")
        other = fetching(hub, tmp_path, file="q8/b.gguf").run()
        whole = fetching(hub, tmp_path).run()
        assert len({folder, other, whole}) == 3
        assert contents(whole).keys() == WANTED
        assert fetching(hub, tmp_path, file="q4/a.gguf").run() == folder


@pytest.mark.parametrize(
    ("name", "reason", "said"),
    [
        ("none.gguf", Reason.MODEL_NOT_FOUND, "the source has no file 'none.gguf': correct spec.source.file"),
        ("../a.gguf", Reason.INVALID_CONFIG, "of each folder must begin with"),
        ("q4/a.gguf", Reason.TRUNCATED_WEIGHTS, "a.gguf is cut off"),
    ],
)
def test_a_file_that_is_missing_or_cut_off_is_named(name: str, reason: Reason, said: str, tmp_path: Path) -> None:
    with serving(gguf_hub(qwen2().bytes()[:-4000])) as hub:
        refused = refusal(hub, tmp_path, file=name)
        assert refused.reason is reason
        assert said in str(refused)
        assert list(tmp_path.glob("models/*/*/*")) == []


SPLIT = "q4/a-00001-of-00003.gguf"


def split_hub(**changes: bytes) -> FileHub:
    """A repository with three parts of a GGUF file. Some of them are other bytes."""
    return FileHub(model() | qwen2().split(1, 9, name="q4/a") | changes)


def test_a_file_in_many_folders_is_loaded(tmp_path: Path) -> None:
    deep = "/".join([*"abcdefg", "x.gguf"])
    with serving(FileHub(model() | {deep: qwen2().bytes()})) as hub:
        folder = fetching(hub, tmp_path, file=deep).run()
        assert contents(folder) == {deep: qwen2().bytes()}
        hub.asked.clear()
        assert fetching(hub, tmp_path, file=deep).run() == folder
        assert hub.asked == [], "the record of the cache names it too"


@pytest.mark.parametrize("file", ["a/-x.gguf", "a/.b/x.gguf", f"a/{'x' * 200}.gguf"])
def test_a_name_that_the_cache_cannot_have_is_told_as_such(file: str, tmp_path: Path) -> None:
    with serving(FileHub(model() | {file: qwen2().bytes()})) as hub:
        refused = refusal(hub, tmp_path, file=file)
    assert refused.reason is Reason.INVALID_CONFIG
    assert f"spec.source.file is {file[:20]}" in str(refused).replace("'", "")
    assert "must begin with a letter, a digit or _" in str(refused)


def test_the_parts_of_a_split_file_become_one(tmp_path: Path) -> None:
    whole = qwen2().bytes()
    with serving(split_hub()) as hub:
        fetch = fetching(hub, tmp_path, file=SPLIT)
        folder = fetch.run()
        assert contents(folder) == {"q4/a.gguf": whole}
        assert fetch.progress.received == sum(len(content) for name, content in hub.files.items() if "q4/" in name)
        assert read_manifest(folder) == (RemoteFile("q4/a.gguf", len(whole)),)
        again = fetching(hub, tmp_path, file=SPLIT)
        assert (again.run(), again.progress.received) == (folder, 0)


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
@pytest.mark.parametrize("removed", [False, True])
def test_the_joining_of_parts_goes_on_where_it_was(
    moved: int, removed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends after some parts have moved, or while their rests are removed."""
    monkeypatch.setattr(joining, "STEP_BYTES", 10_000)
    really: Any = Path.unlink if removed else joining._move
    left = [moved]

    def until_the_end(*arguments: Any, **options: Any) -> None:
        if removed and "-of-" not in arguments[0].name:
            really(*arguments, **options)
            return
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        really(*arguments, **options)

    with serving(split_hub()) as hub, contextlib.suppress(KeyboardInterrupt), monkeypatch.context() as ending:
        ending.setattr(Path if removed else joining, "unlink" if removed else "_move", until_the_end)
        fetching(hub, tmp_path, file=SPLIT).run()
    with serving(split_hub()) as hub:
        fetch = fetching(hub, tmp_path, file=SPLIT)
        assert contents(fetch.run()) == {"q4/a.gguf": qwen2().bytes()}
        assert fetch.progress.received == 0


@pytest.mark.parametrize("published", [False, True])
def test_a_process_that_ends_while_it_publishes_a_joined_file_loads_nothing_again(
    published: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def until_the_end(path: Path, target: Path) -> None:
        if published:
            rename(path, target)
        raise KeyboardInterrupt

    with serving(split_hub()) as hub:
        with contextlib.suppress(KeyboardInterrupt), monkeypatch.context() as ending:
            ending.setattr(Path, "rename", until_the_end)
            fetching(hub, tmp_path, file=SPLIT).run()
        fetch = fetching(hub, tmp_path, file=SPLIT)
        folder = fetch.run()
    assert (contents(folder), fetch.progress.received) == ({"q4/a.gguf": qwen2().bytes()}, 0)
    assert published or not joining.has_started(folder)


def test_the_joining_needs_the_room_of_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "STEP_BYTES", 16_384)
    parts = qwen2("F16").split(1, 9, name="a")
    for name, content in parts.items():
        (tmp_path / name).write_bytes(content)
    before, most, sync = used_bytes(tmp_path), 0, os.fdatasync

    def measured(descriptor: int) -> None:
        nonlocal most
        sync(descriptor)
        most = max(most, used_bytes(tmp_path))

    monkeypatch.setattr(os, "fdatasync", measured)
    joining.join_parts(tmp_path, tuple(parts), "a.gguf")
    assert before < most <= before + 16_384 + 16 * 4096
    assert (tmp_path / "a.gguf").read_bytes() == qwen2("F16").bytes()


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        ({"q4/a-00003-of-00003.gguf": b""}, Reason.TRUNCATED_WEIGHTS, "a-00003-of-00003.gguf is cut off"),
        (
            {"q4/a-00002-of-00003.gguf": qwen2().split(1, 9)["model-00003-of-00003.gguf"]},
            Reason.INVALID_CONFIG,
            "a-00002-of-00003.gguf: split.no is 2, it must be 1 as in its name",
        ),
    ],
)
def test_a_broken_part_is_named(change: dict[str, bytes], reason: Reason, said: str, tmp_path: Path) -> None:
    with serving(split_hub(**change)) as hub:
        refused = refusal(hub, tmp_path, file=SPLIT)
    assert (refused.reason, said in str(refused)) == (reason, True), refused


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    with serving(split_hub()) as hub:
        del hub.files["q4/a-00002-of-00003.gguf"]
        refused = refusal(hub, tmp_path, file=SPLIT)
    right = "the source has no file 'q4/a-00002-of-00003.gguf', one of the 3 parts of spec.source.file"
    assert (refused.reason, str(refused)) == (Reason.MODEL_NOT_FOUND, right)


def test_parts_that_others_changed_while_they_were_joined_are_loaded_again(tmp_path: Path) -> None:
    with serving(split_hub()) as hub:
        entry = fetching(hub, tmp_path, file=SPLIT)
        partial_ = Entry(tmp_path, entry.remote).partial
        (partial_ / "q4").mkdir(parents=True)
        (partial_ / ".joining").touch()
        for name in (name for name in hub.files if "q4/" in name):
            (partial_ / name).write_bytes(b"GGUF and then nonsense that is no header")
        assert refusal(hub, tmp_path, file=SPLIT).reason is Reason.INVALID_CONFIG
        assert contents(fetching(hub, tmp_path, file=SPLIT).run()) == {"q4/a.gguf": qwen2().bytes()}


def test_a_hub_redirects_each_file_once(tmp_path: Path) -> None:
    with serving(FileHub(model())) as hub:
        fetching(hub, tmp_path).run()
        # Hubs limit how often one may ask for an address. Each of the threads may have asked before one was known.
        resolved = [path for path in hub.asked if "resolve" in path and "model-1" in path]
        assert 1 <= len(resolved) <= THREADS
        assert sum(path.startswith("cdn/Qwen/Test:model-1") for path in hub.asked) >= 10


@pytest.mark.parametrize("cut_after", [1, 999, 65_536, 99_999])
def test_a_cut_connection_goes_on_where_it_was(cut_after: int, tmp_path: Path) -> None:
    with serving(FileHub(model(), cut_after=cut_after, cuts=20)) as hub:
        folder = fetching(hub, tmp_path).run()
        assert contents(folder) == {name: hub.files[name] for name in WANTED}
        assert hub.sent <= sum(len(hub.files[name]) for name in WANTED)


def test_what_a_connection_delivered_before_it_fell_silent_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = model()
    with serving(FileHub(files, cut_after=150_000, stall=0.5)) as hub:
        fetch = fetching(hub, tmp_path, chunk_bytes=1 << 21, patience=1.0)
        monkeypatch.setattr(program, "Client", partial(Client, timeout=0.1))
        assert contents(fetch.run())["model-1.safetensors"] == files["model-1.safetensors"]


@pytest.mark.parametrize("cut_after", [0, 65_536])
def test_a_download_over_tls(cut_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, trusted = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    with serving(FileHub(model(), cut_after=cut_after, cuts=20), tls=context) as hub:
        folder = fetching(hub, tmp_path / "cache", chunk_bytes=10 * CHUNK).run()
        assert contents(folder) == {name: hub.files[name] for name in WANTED}


def test_one_connection_serves_many_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connections: list[str] = []
    connect = http.client.HTTPConnection.connect

    def counted(connection: http.client.HTTPConnection) -> None:
        connections.append(f"{connection.host}:{connection.port}")
        connect(connection)

    monkeypatch.setattr(http.client.HTTPConnection, "connect", counted)
    with serving(FileHub(model())) as hub:
        fetching(hub, tmp_path).run()
        assert len([path for path in hub.asked if path.startswith("cdn/")]) > 10
        assert connections.count(hub.network.removeprefix("http://")) <= THREADS


@pytest.mark.parametrize(
    ("pause", "least"),
    [({"Retry-After": "7"}, 6.9), ({"RateLimit": '"resolvers";r=0;t=55', "RateLimit-Policy": '"x";q=3;w=300'}, 55.9)],
)
def test_pauses_and_expired_addresses_only_delay(pause: dict[str, str], least: float, tmp_path: Path) -> None:
    pauses: list[float] = []
    with serving(FileHub(model(), busy=3, busy_headers=pause, expired=1)) as hub:
        folder = fetching(hub, tmp_path, sleep=pauses.append, patience=1000.0).run()
        assert contents(folder) == {name: hub.files[name] for name in WANTED}
    assert max(pauses) >= least
    assert pauses[0] == round(least + 0.1), "the list of files waits too"


def test_a_busy_hub_that_names_no_time_is_asked_after_1_2_and_4_seconds(tmp_path: Path) -> None:
    pauses: list[float] = []
    with serving(FileHub(model(), busy=4)) as hub:
        fetching(hub, tmp_path, sleep=pauses.append, patience=1000.0, chunk_bytes=GIB).run()
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]


def test_all_threads_of_a_download_share_one_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of eight threads counted its own refusals, so the hub was asked eight times as often."""
    now = [1000.0]
    monkeypatch.setattr("qwen_operator.fetch.transfer.time", SimpleNamespace(monotonic=lambda: now[0], sleep=None))
    remote = Remote(Hub.HUGGING_FACE, "http://hub.test", REPOSITORY, COMMIT)
    transfer = Transfer(remote, (), tmp_path, lambda: Client(remote, None), Progress())  # type: ignore[arg-type]
    for expected in (1.0, 2.0, 4.0):
        assert {transfer._shared_pause(Busy(429, 0.0)) for _ in range(THREADS)} == {expected}
        now[0] += expected
    assert transfer._shared_pause(Busy(429, 60.0)) == 60.0
    now[0] += 20.0
    assert transfer._shared_pause(Busy(429, 0.0)) == 40.0, "whoever asked before the pause does not make it longer"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "Sun, 29 Nov 2026 10:00:30 GMT", "Date": "Sun, 29 Nov 2026 10:00:00 GMT"}, 30),
        ({"Retry-After": "Sun, 29 Nov 2026 10:00:30 GMT", "Date": "soon"}, 0),
        ({"Retry-After": "9" * 5000}, LONGEST_SECONDS),
        ({"RateLimit": '"resolvers";r=0;t=55'}, 56),
        ({"RateLimit": ' "api" ; t = 55 ; r = 0 '}, 56),
        ({"RateLimit": '"api";r=10;t=90, "resolvers";r=0;t=55'}, 56),
        ({"RateLimit": '"api";r=10;t=90'}, 0),
        ({"RateLimit": '"resolvers";r=0;t=55', "Retry-After": "70"}, 70),
        ({"RateLimit": '"resolvers";r=0;t=99999999999'}, 0),
        ({"RateLimit": '"resolvers";r=0;t=-5'}, 0),
        ({"RateLimit": '"resolvers";r=0'}, 0),
        ({"RateLimit": '"a";r=0;t=1,' * 100_000}, 2),
    ],
)
def test_the_pause_that_a_server_asks_for(headers: dict[str, str], seconds: float) -> None:
    assert asked_pause(headers.get) == seconds


def test_a_flipped_byte_is_found_and_loaded_again(tmp_path: Path) -> None:
    with serving(FileHub(model(), flipped={"model-1.safetensors": 1, "config.json": 1})) as hub:
        folder = fetching(hub, tmp_path).run()
        assert contents(folder) == {name: hub.files[name] for name in WANTED}


def test_a_file_that_stays_wrong_is_refused_and_never_published(tmp_path: Path) -> None:
    with serving(FileHub(model(), flipped={"model-2.safetensors": 10**6})) as hub:
        error = refusal(hub, tmp_path)
        assert error.reason is Reason.CHECKSUM_MISMATCH
        assert "model-2.safetensors" in str(error)
        assert not (tmp_path / "models" / "hf").exists()
        hub.flipped.clear()
        hub.sent_of.clear()
        fetching(hub, tmp_path).run()
        assert hub.sent < 10_000, "only the wrong file is loaded again"


def without(name: str) -> Callable[[dict[str, bytes]], Any]:
    return lambda files: files.pop(name)


@pytest.mark.parametrize(
    ("faults", "changes", "reason", "text"),
    [
        ({"token": "t"}, {}, Reason.AUTH_REQUIRED, "name a Secret with a token in spec.source.secretRef"),
        ({"token": "t"}, {"token": "wrong"}, Reason.AUTH_REQUIRED, "correct the token in the Secret"),
        (
            {"gated": True},
            {},
            Reason.GATED_MODEL,
            "name a Secret with a token of that account in spec.source.secretRef",
        ),
        ({"gated": True, "token": "t"}, {"token": "t"}, Reason.GATED_MODEL, "with the account of the token"),
        ({}, {"commit": "f" * 40}, Reason.MODEL_NOT_FOUND, "correct spec.source.uri or spec.source.revision"),
        ({"missing": {"config.json"}}, {}, Reason.MODEL_NOT_FOUND, "config.json of hf://Qwen/Test"),
        ({}, {"limit": 500_000}, Reason.DISK_FULL, "and the cache may have 0.5 MB in all: enlarge cache.sizeGiB"),
        ({"busy": 10**6, "busy_headers": {"Retry-After": "60"}}, {}, Reason.HUB_UNREACHABLE, "cannot be reached"),
    ],
)
def test_each_failure_has_its_reason(
    faults: dict[str, Any], changes: dict[str, Any], reason: Reason, text: str, tmp_path: Path
) -> None:
    with serving(FileHub(model(), **faults)) as hub:
        error = refusal(hub, tmp_path, **changes)
        assert (error.reason, text in str(error)) == (reason, True), str(error)
        assert "\n" not in str(error)
        assert "wrong" not in str(error), "the token is never shown"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without("tokenizer.json"), Reason.TOKENIZER_MISSING),
        (without("config.json"), Reason.MODEL_NOT_FOUND),
        (
            lambda files: files.update({"model-2.safetensors": files["model-2.safetensors"][:-1]}),
            Reason.TRUNCATED_WEIGHTS,
        ),
        (
            lambda files: [files.pop(name) for name in list(files) if name.endswith("safetensors")],
            Reason.MODEL_NOT_FOUND,
        ),
    ],
)
def test_a_repository_that_no_engine_can_load_is_refused(
    damage: Callable[[dict[str, bytes]], Any], reason: Reason, tmp_path: Path
) -> None:
    files = model()
    damage(files)
    with serving(FileHub(files)) as hub:
        assert refusal(hub, tmp_path).reason is reason


def test_a_hub_that_is_gone_is_named(tmp_path: Path) -> None:
    with serving(FileHub(model())) as hub:
        pass
    error = refusal(hub, tmp_path, patience=0.5)
    assert error.reason is Reason.HUB_UNREACHABLE
    assert hub.address in str(error)


def test_private_files_come_with_the_token(tmp_path: Path) -> None:
    with serving(FileHub(model(), token="secret")) as hub:
        assert contents(fetching(hub, tmp_path, token="secret").run()).keys() == WANTED


def test_many_pods_that_start_together_load_once(tmp_path: Path) -> None:
    with serving(FileHub(model())) as hub:
        fetches = [fetching(hub, tmp_path, pod=f"chat-{index}", sleep=lambda _s: None) for index in range(20)]
        threads = [threading.Thread(target=fetch.run) for fetch in fetches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert hub.sent == sum(len(hub.files[name]) for name in WANTED)
        assert len(list((tmp_path / "leases").glob("*/*"))) == 20


def test_a_changed_list_drops_what_it_no_longer_names(tmp_path: Path) -> None:
    with serving(FileHub(model(), flipped={"model-2.safetensors": 10**6})) as hub:
        refusal(hub, tmp_path)
        hub.flipped.clear()
        del hub.files["1_Pooling/config.json"]
        hub.files["config.json"] += b" "
        folder = fetching(hub, tmp_path).run()
        assert contents(folder) == {name: hub.files[name] for name in WANTED - {"1_Pooling/config.json"}}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become other users")
def test_pods_of_other_users_go_on_with_a_download(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, serving(FileHub(model())) as hub:
        root = Path(name)
        root.chmod(0o777)
        hub.flipped["model-2.safetensors"] = 2
        ends = [as_user(user, fetching(hub, root)) for user in (1001, 1002, 1003)]
        assert ends == ["ChecksumMismatch", "", ""]
        assert hub.sent < 1_100_000, "what the first one loaded stays"


def as_user(user: int, fetch: Fetch) -> str:
    """Run it as this user; gives the reason of its failure. The work of the threads is done as that user too."""
    os.setegid(user)
    os.seteuid(user)
    try:
        fetch.run()
    except FetchError as error:
        return str(error.reason)
    finally:
        os.seteuid(0)
        os.setegid(0)
    return ""


def test_a_damaged_model_is_loaded_again(tmp_path: Path) -> None:
    with serving(FileHub(model())) as hub:
        folder = fetching(hub, tmp_path).run()
        (folder / "model-1.safetensors").write_bytes(b"short")
        assert fetching(hub, tmp_path).run() == folder
        assert contents(folder)["model-1.safetensors"] == hub.files["model-1.safetensors"]


def test_the_page_shows_the_progress() -> None:
    times = iter((0.0, 10.0, 20.0))
    progress = Progress(clock=lambda: next(times), total=1000)
    progress.rate()
    progress.add(400)
    with showing(progress.page, 0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress") as response:
            page = json.load(response)
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/")
        with showing(progress.page, port) as second:
            assert second == 0, "a port in use is no reason not to download"
    assert page == {
        "version": 1,
        "phase": "Download",
        "bytesTotal": 1000,
        "bytesDone": 400,
        "bytesPerSecond": 40,
        "finished": False,
    }


def test_a_client_that_never_ends_its_request_does_not_keep_the_fetch_from_ending() -> None:
    ended = threading.Event()

    def drip(port: int) -> None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
            begun.set()
            while not ended.wait(0.05):
                connection.sendall(b"x")

    begun = threading.Event()
    with showing(lambda: b"{}", 0) as port:
        client = threading.Thread(target=drip, args=(port,))
        client.start()
        begun.wait()
        watchdog = threading.Timer(20.0, ended.set)
        watchdog.start()
    assert not ended.is_set(), "the server waited until the client went"
    watchdog.cancel()
    ended.set()
    client.join()


def command(hub: FileHub, root: Path) -> list[str]:
    code = "import sys; from qwen_operator.cli import main; sys.exit(main())"
    options = ["--hub=hf", f"--hub-url={hub.address}", f"--repository={REPOSITORY}", f"--commit={COMMIT}"]
    return [sys.executable, "-c", code, "fetch", *options, f"--cache={root}", "--size-gib=1", "--port=0"]


def test_a_killed_download_goes_on_where_it_was(tmp_path: Path) -> None:
    """The whole program, as the container runs it, with its real chunks."""
    files = model(120_000_000)
    with serving(FileHub(files)) as hub:
        hub.cut_after, total = 0, sum(len(files[name]) for name in WANTED)
        child = subprocess.Popen(command(hub, tmp_path), stdout=subprocess.PIPE)
        journal = tmp_path / "partial" / f"hf--Qwen--Test--{COMMIT}" / ".journal"
        while not (journal.exists() and len(journal.read_text().splitlines()) > 5):
            assert child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        arrived = 0
        for line in journal.read_text().splitlines():
            first, end, _, name = line.split()
            there = (journal.parent / name).read_bytes()[int(first) : int(end)]
            assert there == files[name][int(first) : int(end)], "what the journal names is there"
            arrived += int(end) - int(first)
        hub.sent_of.clear()
        ended = subprocess.run(command(hub, tmp_path), capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert hub.sent == total - arrived
        assert (
            contents(tmp_path / "models/hf/Qwen--Test" / COMMIT)["model-1.safetensors"] == files["model-1.safetensors"]
        )
        last = json.loads(ended.stdout.splitlines()[-1])
        assert (last["bytesDone"], last["finished"]) == (total, True)


def test_a_write_that_takes_a_part_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, piece, at: pwrite(file, piece[: max(1, len(piece) // 2)], at))
    with serving(FileHub(model(300_000))) as hub:
        assert contents(fetching(hub, tmp_path).run()) == {name: hub.files[name] for name in WANTED}


_PODS = """
import os, socket, sys
import qwen_operator.fetch.program
from qwen_operator.cli import main

def pod(name):
    socket.gethostname = lambda: name
    sys.stdout = open(name, "w")
    code = 70
    try:
        code = main()
    finally:
        sys.stdout.flush()
        os._exit(code)

children = [os.fork() or pod(f"chat-{number}") for number in range(20)]
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""
"""Twenty processes that run the whole program. Python starts once for all of them, and each has its own locks."""


@pytest.mark.timeout(120)
def test_twenty_pods_of_one_node_download_a_model_once(tmp_path: Path) -> None:
    opened, logs = threading.Event(), tmp_path / "logs"
    logs.mkdir()
    with serving(FileHub(model(2_000_000), opened=opened)) as hub:
        pods = subprocess.Popen([sys.executable, "-c", _PODS, *command(hub, tmp_path)[3:]], cwd=logs)
        # Every one of them has asked for the model before its first byte comes.
        while len(list(tmp_path.glob("leases/*/chat-*"))) < 20:
            assert pods.poll() is None
            time.sleep(0.02)
        opened.set()
        assert pods.wait() == 0
        lines = [(logs / f"chat-{number}").read_text().splitlines() for number in range(20)]
        assert [json.loads(said[-1])["finished"] for said in lines] == [True] * 20
        assert sum(line.startswith("downloads ") for said in lines for line in said) == 1
        assert hub.sent == sum(len(hub.files[name]) for name in WANTED)


def test_a_pod_that_waits_shows_the_progress_of_the_one_that_downloads(tmp_path: Path) -> None:
    with serving(FileHub(model())) as hub:
        waiting = fetching(hub, tmp_path)
        entry = Entry(tmp_path, waiting.remote)
        store = Store(tmp_path, GIB)
        store.prepare()
        entry.partial.mkdir()
        (entry.partial / ".progress.json").write_bytes(b'{"bytesDone": 7}')
        seen: list[bytes] = []

        def look(_seconds: float) -> None:
            seen.append(waiting.progress.page())
            time.sleep(0.01)

        with store.locked(entry.key):
            thread = threading.Thread(target=waiting.run)
            waiting.sleep = look
            thread.start()
            while len(seen) < 150:
                time.sleep(0.01)
            assert (entry.partial / ".progress.json").read_bytes() == b'{"bytesDone": 7}'
        thread.join()
        assert set(seen) == {b'{"bytesDone": 7}'}
        assert json.loads(waiting.progress.page())["finished"] is True


def test_a_fetch_that_is_asked_to_end_ends_at_once(tmp_path: Path) -> None:
    with serving(FileHub(model(), delay=5.0)) as hub:
        child = subprocess.Popen(command(hub, tmp_path), stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert b"downloads 5 files" in child.stdout.readline()
        child.terminate()
        child.communicate()
        assert child.returncode == 143


def test_the_journal_names_no_chunk_that_a_loss_of_power_could_take_unnoticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checksum would find what is missing. Without one, the chunk is on the disk first."""
    content = bytes(range(250))
    files = [RemoteFile("checked.json", 250, checksum(content)), RemoteFile("unchecked.json", 250)]
    written, noted, flush, note = set(), {}, os.fsync, Journal.add

    def fsync(descriptor: int) -> None:
        written.add(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        flush(descriptor)

    def add(journal: Journal, chunk: Chunk) -> None:
        noted[chunk.file.path] = chunk.file.path in written
        note(journal, chunk)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Journal, "add", add)
    with serving(FileHub({file.path: content for file in files})) as hub:
        remote = Remote(Hub.HUGGING_FACE, hub.address, REPOSITORY, COMMIT, "", "")
        Transfer(remote, files, tmp_path, lambda: Client(remote, certificates()), Progress()).run()
    assert noted == {"checked.json": False, "unchecked.json": True}


@pytest.mark.parametrize(
    ("call", "code", "reason"),
    [
        ("fsync", errno.ENOSPC, Reason.DISK_FULL),
        ("ftruncate", errno.EDQUOT, Reason.DISK_FULL),
        ("pwrite", errno.ENOSPC, Reason.DISK_FULL),
        ("ftruncate", errno.EFBIG, Reason.CACHE_UNUSABLE),
        ("rename", errno.EACCES, Reason.CACHE_UNUSABLE),
    ],
)
def test_a_disk_that_takes_no_more_is_reported(
    call: str, code: int, reason: Reason, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(signal, "signal", lambda _number, _handler: None)
    log = tmp_path / "log"
    with serving(FileHub(model())) as hub, monkeypatch.context() as broken:
        broken.setattr(os, call, refuse)
        assert program.main(fetching(hub, tmp_path / "cache"), log) == 1
    report = json.loads(log.read_bytes())
    assert (report["reason"], report["phase"]) == (reason, "Download")
    assert os.strerror(code) in report["log"][0]


@pytest.mark.parametrize(
    ("faults", "silent"),
    [
        ({"expired": 10**6}, False),
        ({"busy": 10**6, "busy_headers": {"Retry-After": "60"}}, True),
        ({"opened": threading.Event()}, True),
    ],
)
def test_a_failure_says_whether_the_hub_is_silent_and_what_is_there(
    faults: dict[str, Any], silent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda _number, _handler: None)
    monkeypatch.setattr(program, "Client", partial(Client, timeout=0.1))
    with serving(FileHub(model(), **faults)) as hub:
        fetch = fetching(hub, tmp_path / "cache", patience=1.0)
        earlier = Entry(fetch.place.root, fetch.remote).partial / "earlier"
        earlier.parent.mkdir(parents=True)
        earlier.write_bytes(bytes(1 << 20))
        assert program.main(fetch, tmp_path / "log") == 1
        faults.get("opened", threading.Event()).set()
    report = json.loads((tmp_path / "log").read_bytes())
    assert (report["reason"], report.get("silent", False)) == ("HubUnreachable", silent)
    assert 1 << 20 <= report["presentBytes"] < 4 << 20
