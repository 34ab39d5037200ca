"""Loads and unloads LoRA adapters while the engine runs, so that a changed list needs no new pod.

The operator writes two annotations of the pod: the adapters that the engine should have, and the names of those that it
has. The kubelet shows both as files, because the operator has no way into the engine: SGLang's calls that load adapters
are open to its own pod only (see `guard`). The page of the start shows the operator the result.

A container that starts again loads what the engine had before, and takes the rest up while it serves. So an adapter
that cannot be loaded never keeps the engine from starting.

An adapter of a hub or a bucket may be on its way into the cache. It is loaded as soon as its folder is there: a folder
comes there in one step, complete. The engine's pod holds a lock on it while the engine has it.
"""

import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

from qwen_runtime.adapter_list import (
    FETCHED,
    IN_USE,
    LOADED_FILE,
    LORA_PATHS,
    WANTED_FILE,
    digest,
    read_list,
    with_option,
)
from qwen_runtime.checkpoints.adapter import ADAPTER_CONFIG
from qwen_runtime.hold import NotHeld, hold
from qwen_runtime.report import complain, shorten

UNLOAD_SECONDS = 10.0
"""How long an adapter stays loaded that is not wanted any more.

Requests may be on their way that the gateway let pass before. SGLang would load the adapter again for them.
"""
RETRY_SECONDS = 30.0
# SGLang loads an adapter again for a late request.
_LOOK_SECONDS = 60.0
_POLL_SECONDS = 0.25
_STARTING_SECONDS = 1.0
_CALL_SECONDS = 5.0
# From a slow volume, a large adapter may take minutes.
_LOAD_SECONDS = 600.0
_LARGEST_FILE = 64 * 1024
_LARGEST_ANSWER = 1 << 20
_MESSAGE_BYTES = 100
_PORT = 8000


class Engine(Protocol):
    """The calls of a running engine."""

    def loaded(self) -> dict[str, str] | None:
        """The folders of the adapters that it has, by name; None while it does not serve."""

    def load(self, name: str, folder: str) -> str:
        """Load an adapter; why that failed, or ""."""

    def unload(self, name: str) -> str:
        """Unload an adapter when its running requests have ended; why that failed, or ""."""


@dataclass(frozen=True, slots=True)
class LoopbackEngine:
    """SGLang in the same pod."""

    port: int = _PORT

    def loaded(self) -> dict[str, str] | None:
        """See Engine."""
        status, _ = self._call("GET", "/ready", _CALL_SECONDS)
        if status != 200:
            return None
        status, answer = self._call("GET", "/v1/models", _CALL_SECONDS)
        listed = answer.get("data")
        if status != 200 or not isinstance(listed, list):
            return None
        # An adapter has the model as its parent.
        entries = [entry for entry in listed if isinstance(entry, dict) and entry.get("parent")]
        return {str(entry.get("id")): str(entry.get("root")) for entry in entries}

    def load(self, name: str, folder: str) -> str:
        """See Engine."""
        # SGLang would take the path for the name of a repository.
        if not _has_files(folder):
            return f"{folder} has no {ADAPTER_CONFIG}"
        body = {"lora_name": name, "lora_path": folder}
        return _why_not(*self._call("POST", "/load_lora_adapter", _LOAD_SECONDS, body))

    def unload(self, name: str) -> str:
        """See Engine."""
        return _why_not(*self._call("POST", "/unload_lora_adapter", _LOAD_SECONDS, {"lora_name": name}))

    def _call(
        self, method: str, path: str, seconds: float, body: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """The status and the JSON object of an answer; status 0 if there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"} if text else {})
            answer = connection.getresponse()
            content = answer.read(_LARGEST_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            return 0, {"error_message": f"the engine does not answer: {error}"}
        finally:
            connection.close()
        return answer.status, _object(content)


def _has_files(folder: str) -> bool:
    try:
        return Path(folder, ADAPTER_CONFIG).is_file()
    except (OSError, ValueError):
        # A cache on NFS answers so for a while. What nobody can read is as if it were not there.
        return False


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _why_not(status: int, answer: Mapping[str, Any]) -> str:
    if status == 200 and answer.get("success") is True:
        return ""
    return str(answer.get("error_message") or f"the engine answered {status}")


@dataclass(slots=True)
class Loader:
    """Brings the adapters of an engine to the list in `folder`. `clock` gives seconds and never goes back.

    `fetched`: the folder of the adapters that come from a cache, on which locks are held.
    """

    folder: Path
    engine: Engine = field(default_factory=LoopbackEngine)
    clock: Callable[[], float] = time.monotonic
    fetched: str = FETCHED
    _text: str = ""
    _wanted: dict[str, str] = field(default_factory=dict)
    _failed: dict[str, tuple[str, float]] = field(default_factory=dict)
    _unwanted: dict[str, float] = field(default_factory=dict)
    _refused: str = ""
    _fault: str = ""
    _due: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _answered: str = ""
    _loaded: list[str] = field(default_factory=list)
    _absent: set[str] = field(default_factory=set)
    _locks: dict[str, int] = field(default_factory=dict)

    def hold(self) -> None:
        """Lock the fetched adapters with which the engine starts. Raises NotHeld if one of them is gone."""
        for folder in (self._starting() or {}).values():
            if folder.startswith(self.fetched):
                self._locks[folder] = hold(Path(folder, IN_USE))

    def command(self, command: Sequence[str]) -> list[str]:
        """The engine's command, so that it starts with the wanted adapters that the engine had before."""
        starting = self._starting()
        if starting is None:
            return list(command)
        return with_option(command, LORA_PATHS, [f"{name}={folder}" for name, folder in sorted(starting.items())])

    def _starting(self) -> dict[str, str] | None:
        """The wanted adapters that the engine had before; None if nobody can read the list."""
        try:
            wanted = read_list(self._read(WANTED_FILE))
        except ValueError:
            return None
        had = self._read(LOADED_FILE).split(",")
        return {name: folder for name, folder in wanted.items() if name in had}

    def start(self) -> None:
        """Follow the list in a thread, until the process ends."""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> NoReturn:
        while True:
            self.look()
            time.sleep(_POLL_SECONDS)

    def look(self) -> None:
        """One step, which may fail: nobody else would load an adapter until the container starts again."""
        fault = ""
        try:
            self.step()
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        if fault and fault != self._fault:
            complain(f"the list of adapters cannot be followed at present: {fault}")
        self._fault = fault

    def step(self) -> None:
        """Look at the list once, and at the engine if something is to be done."""
        text, now = self._read(WANTED_FILE), self.clock()
        if text and text not in (self._text, self._refused):
            try:
                self._wanted, self._text, self._failed, self._due = read_list(text), text, {}, now
            except ValueError as error:
                self._refused = text
                complain(f"the annotation with the adapters cannot be read: {error}")
        if not self._text or (now < self._due and not self._arrived()):
            return
        has = self.engine.loaded()
        self._due = now + (_STARTING_SECONDS if has is None else self._changed(has, now))

    def _arrived(self) -> bool:
        """Whether the files of an adapter have come that were not there at the last look."""
        return any(_has_files(self._wanted[name]) for name in self._absent if name in self._wanted)

    def _changed(self, has: dict[str, str], now: float) -> float:
        """Load and unload what is due. Returns the seconds until the next look."""
        waits = [_LOOK_SECONDS]
        self._unwanted = {name: self._unwanted.get(name, now) for name in has if has[name] != self._wanted.get(name)}
        for name, since in list(self._unwanted.items()):
            left = 0.0 if name in self._wanted else since + UNLOAD_SECONDS - now
            if left > 0:
                waits.append(left)
            elif why := self.engine.unload(name):
                complain(f"the adapter {name} is not unloaded: {why}")
            else:
                complain(f"the adapter {name} is unloaded")
                del has[name]
        self._absent = set()
        for name in self._wanted.keys() - has.keys():
            waits.append(self._load(name, has, now))
        self._release(has.values())
        loaded = sorted(name for name, folder in self._wanted.items() if has.get(name) == folder)
        with self._lock:
            self._loaded, self._answered = loaded, digest(self._text)
        return min(waits)

    def _load(self, name: str, has: dict[str, str], now: float) -> float:
        folder = self._wanted[name]
        if folder.startswith(self.fetched) and not _has_files(folder):
            self._absent.add(name)
            self._forget(name)
            return _LOOK_SECONDS
        _, failed_at = self._failed.get(name, ("", now - RETRY_SECONDS))
        if failed_at + RETRY_SECONDS > now:
            return failed_at + RETRY_SECONDS - now
        if name in self._failed:
            # SGLang loads nothing that another try left behind in a part of its processes.
            self.engine.unload(name)
        why = self._lock_of(folder) or self.engine.load(name, folder)
        if why:
            complain(f"the adapter {name} is not loaded: {why}")
            with self._lock:
                self._failed = {**self._failed, name: (why, now)}
            return RETRY_SECONDS
        complain(f"the adapter {name} is loaded")
        has[name] = folder
        self._forget(name)
        return _LOOK_SECONDS

    def _forget(self, name: str) -> None:
        """Say no more that an adapter could not be loaded."""
        with self._lock:
            self._failed = {other: entry for other, entry in self._failed.items() if other != name}

    def _lock_of(self, folder: str) -> str:
        """Lock a fetched adapter; why that failed, or ""."""
        if folder.startswith(self.fetched) and folder not in self._locks:
            try:
                self._locks[folder] = hold(Path(folder, IN_USE), patience=0.0)
            except NotHeld as error:
                return str(error)
        return ""

    def _release(self, folders: Iterable[str]) -> None:
        """Let go of the adapters that the engine has not: a cache may remove them now."""
        used = {*folders, *(folder for name, folder in self._wanted.items() if name not in self._failed)}
        for folder in self._locks.keys() - used:
            os.close(self._locks.pop(folder))

    def page(self) -> dict[str, Any]:
        """Which list the engine has taken up, by its digest, and which of its adapters it has and could not load."""
        with self._lock:
            failed = {name: shorten(why, _MESSAGE_BYTES) for name, (why, _) in sorted(self._failed.items())}
            return {"wanted": self._answered, "loaded": self._loaded, "failed": failed}

    def _read(self, name: str) -> str:
        try:
            with (self.folder / name).open("rb") as file:
                return file.read(_LARGEST_FILE).decode("utf-8", "replace")
        except OSError:
            return ""
