"""Which cached models go: the least recently used first, never one in use, and none in vain."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from pathlib import Path

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.fetch.faults import FetchError
from qwen_operator.fetch.files import RemoteFile
from qwen_operator.fetch.room import Cached, Room, Verdict, make_room
from qwen_operator.fetch.store import LEASE_SECONDS, Entry, Store
from qwen_operator.fetch.wire import Remote
from qwen_runtime.adapter_list import IN_USE
from qwen_runtime.hold import NotHeld, hold

OLD, NEW = Cached("old", 40, 1.0, False), Cached("new", 30, 2.0, False)
BUSY = Cached("busy", 20, 0.0, True)


@pytest.mark.parametrize(
    ("cached", "wanted", "room", "verdict"),
    [
        ([], 100, Room(100, 100), Verdict((), 0, 100)),
        ([OLD, NEW], 30, Room(100, 1000), Verdict((), 0, 30)),
        ([NEW, OLD], 31, Room(100, 1000), Verdict(("old",), 0, 70)),
        ([NEW, OLD], 71, Room(100, 1000), Verdict(("old", "new"), 0, 100)),
        # The disk may be fuller than the cache's own limit says.
        ([NEW, OLD], 31, Room(1000, 30), Verdict(("old",), 0, 70)),
        ([NEW, OLD, BUSY], 81, Room(100, 1000), Verdict((), 1, 80)),
        ([BUSY], 90, Room(100, 1000), Verdict((), 10, 80)),
        # A download that runs has been promised its room.
        ([Cached("coming", 10, 0.0, True, coming=50)], 50, Room(100, 1000), Verdict((), 10, 40)),
    ],
)
def test_what_goes(cached: list[Cached], wanted: int, room: Room, verdict: Verdict) -> None:
    assert make_room(cached, wanted, room) == verdict


class World:
    """A cache with a limit of 100 kB, and a clock."""

    def __init__(self, root: Path) -> None:
        self.time = 1e9
        self.store = Store(root, 100_000, lambda: self.time)
        self.store.prepare()

    def entry(self, name: str) -> Entry:
        return Entry(self.store.root, Remote(Hub.HUGGING_FACE, "http://hub", f"Qwen/{name}", "c" * 40))

    def put(self, name: str, size: int = 40_960) -> Entry:
        entry, files = self.entry(name), [RemoteFile("model.safetensors", size)]
        with self.store.locked(entry.key):
            self.store.reserve(entry, files)
            (entry.partial / "model.safetensors").write_bytes(bytes(size))
            self.store.publish(entry, files)
        self.store.lease(entry, "pod")
        return entry

    def names(self) -> set[str]:
        return {path.parent.name.removeprefix("Qwen--") for path in (self.store.root / "models").glob("*/*/*")}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_least_recently_used_model_goes(world: World) -> None:
    world.put("a")
    world.time += 10
    world.put("b")
    world.time += 10
    world.store.lease(world.entry("a"), "another")
    world.time += LEASE_SECONDS
    world.put("c")
    assert world.names() == {"a", "c"}
    assert not (world.store.root / "leases" / world.entry("b").key).exists()
    assert list((world.store.root / "partial").iterdir()) == []


def test_a_model_that_an_engine_holds_stays_however_old_it_is(world: World) -> None:
    first, _ = world.put("a"), world.put("b")
    # An engine mounts the model read-only, so it can only lock a file that it reads.
    engine = os.open(first.folder / IN_USE, os.O_RDONLY)
    fcntl.flock(engine, fcntl.LOCK_SH)
    world.time += 10 * LEASE_SECONDS
    world.put("c")
    assert world.names() == {"a", "c"}
    os.close(engine)
    world.time += 10 * LEASE_SECONDS
    world.put("d", size=81_920)
    assert world.names() == {"d"}


def test_a_fresh_lease_protects_a_model_whose_engine_has_not_started(world: World) -> None:
    world.put("a")
    world.put("b")
    with pytest.raises(FetchError) as refused:
        world.put("c")
    assert refused.value.reason is Reason.DISK_FULL
    assert "the cache has 0.0 MB besides models used within an hour" in str(refused.value)
    assert str(refused.value).endswith(") or run qwen-operator cache rm")
    assert world.names() == {"a", "b"}


def test_a_model_that_is_larger_than_the_cache_takes_no_room_and_says_so(world: World) -> None:
    world.put("a")
    world.time += LEASE_SECONDS
    world.store.limit = 2 << 30
    with pytest.raises(FetchError) as refused:
        world.store.reserve(world.entry("large"), [RemoteFile("model.safetensors", 5 * 10**9)])
    words = "has 5.0 GB, and the cache may have 2.1 GB in all: enlarge cache.sizeGiB (2 GiB)"
    assert (refused.value.reason, str(refused.value).partition(" at ")[2].partition(" ")[2]) == ("DiskFull", words)
    assert world.names() == {"a"}


def test_a_broken_off_download_goes_first_and_a_running_one_keeps_its_room(world: World) -> None:
    half, files = world.entry("half"), [RemoteFile("model.safetensors", 60_000)]
    with world.store.locked(half.key):
        world.store.reserve(half, files)
        with pytest.raises(FetchError):
            world.put("a")
    world.put("a")
    world.put("b")
    assert world.names() == {"a", "b"}


@pytest.mark.parametrize(("percent", "fits"), [(0, True), (10, True), (15, False)])
def test_a_part_of_a_nodes_disk_stays_free(
    percent: int, fits: bool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Disk:
        """Of 1 MB, 150 kB are free."""

        f_frsize, f_blocks, f_bavail = 1000, 1000, 150

    monkeypatch.setattr(os, "statvfs", lambda _path: Disk)
    world.store.kept_free_percent = percent
    if fits:
        world.put("a")
        return
    with pytest.raises(FetchError, match="of which 15 % stay free, because the kubelet evicts pods"):
        world.put("a")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(FetchError) as refused:
        Store(tmp_path, 1).prepare()
    assert refused.value.reason is Reason.CACHE_UNUSABLE
    assert "chmod 0777" in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": [1]}', b'{"files": [{"path": "../a", "size": 1}]}'])
def test_a_broken_manifest_is_no_complete_model(world: World, content: bytes) -> None:
    entry = world.put("a")
    (entry.folder / ".manifest.json").write_bytes(content)
    assert not entry.is_complete()


def test_a_download_keeps_its_place_before_and_after_it_has_a_total(world: World) -> None:
    half = world.entry("half")
    with world.store.locked(half.key):
        half.partial.mkdir()
        (half.partial / "model.safetensors").write_bytes(bytes(60_000))
        with pytest.raises(FetchError):
            world.put("a")
        assert half.partial.exists()


def test_an_engine_that_starts_while_its_model_was_chosen_to_go_keeps_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = world.put("a"), world.put("b")
    world.time += LEASE_SECONDS
    engines: list[int] = []
    remove = Store.remove

    def late(store: Store, key: str) -> bool:
        if not engines:
            engines.append(hold(first.folder / IN_USE))
        return remove(store, key)

    monkeypatch.setattr(Store, "remove", late)
    world.put("c")
    assert world.names() == {"a", "c"}
    assert not second.folder.exists()
    os.close(engines[0])


def test_no_engine_gets_a_model_while_it_goes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put("a")
    world.put("b")
    world.time += LEASE_SECONDS
    rmtree, told = shutil.rmtree, []

    def watched(path: Path, ignore_errors: bool) -> None:
        if (path / IN_USE).exists():
            with pytest.raises(NotHeld) as refused:
                hold(path / IN_USE, patience=0.0)
            told.append(str(refused.value))
        rmtree(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", watched)
    world.put("c")
    assert len(told) == 1
    assert "another process holds the lock" in told[0]


def test_a_pod_that_asks_for_a_model_that_goes_does_not_take_it_for_complete(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.put("a")
    world.put("b")
    world.time += LEASE_SECONDS
    found: list[bool] = []
    remove = Store.remove

    def ask() -> None:
        world.store.lease(first, "late")
        found.append(first.is_complete())

    asking = threading.Thread(target=ask)

    def late(store: Store, key: str) -> bool:
        asking.start()
        asking.join(0.3)
        return remove(store, key)

    monkeypatch.setattr(Store, "remove", late)
    world.put("c")
    asking.join()
    assert found == [first.is_complete()]


def test_a_model_without_the_file_that_engines_lock_is_not_complete(world: World) -> None:
    entry = world.put("a")
    (entry.folder / IN_USE).unlink()
    assert not entry.is_complete()
