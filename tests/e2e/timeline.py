"""Who saw what when, for the reader of a test's output."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.qd import pods
from tests.testbed.kubectl import Kubectl, KubectlError, Manifest, condition


class Timeline:
    """Lines with the seconds since its beginning. They are printed at once."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self.lines: list[str] = []

    def note(self, text: str) -> float:
        at = time.monotonic() - self._start
        self.lines.append(f"{at:6.1f} s  {text}")
        print(self.lines[-1], flush=True)
        return at


@contextmanager
def watched(line: Timeline, kubectl: Kubectl, space: str, name: str) -> Iterator[None]:
    """During the block, each change of a QwenDeployment and of its pods that a person would see becomes a line."""
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(line, kubectl, space, name, stop), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join(30)


def _watch(line: Timeline, kubectl: Kubectl, space: str, name: str, stop: threading.Event) -> None:
    told: dict[str, str] = {}
    while not stop.wait(0.5):
        try:
            seen = _seen(kubectl, space, name)
        except KubectlError:
            continue
        for what in {**told, **seen}:
            if told.get(what) != seen.get(what):
                line.note(f"{what}: {seen.get(what, 'gone')}")
        told = seen


def _seen(kubectl: Kubectl, space: str, name: str) -> dict[str, str]:
    status = (kubectl.get("qd", name, space) or {}).get("status", {})
    ready = condition({"status": status}, "Ready")
    failure = status.get("lastFailure") or {}
    seen = {"Ready": f"{ready.get('status')} {ready.get('reason')}: {ready.get('message')}"}
    if failure:
        last = (failure.get("log") or [""])[-1]
        how = f"{failure.get('reason')} of {failure.get('pod')}, exit code {failure.get('exitCode')}"
        seen["lastFailure"] = f"{how}, number {failure.get('count')}: {last}"
    for pod in pods(kubectl, space, name):
        seen[f"{pod['metadata']['name']} {pod['metadata']['uid'][:4]}"] = _of_pod(pod)
    return seen


def _of_pod(pod: Manifest) -> str:
    states = pod["status"].get("containerStatuses") or [{}]
    # The ways in which a container waits.
    state = ", ".join(
        kind if kind == "running" else f"{kind} {detail.get('reason', '')}"
        for kind, detail in states[0].get("state", {}).items()
    )
    words = [
        pod["spec"].get("nodeName", "no node"),
        "gated" if pod["spec"].get("schedulingGates") else pod["status"].get("phase", ""),
        state,
        "ready" if states[0].get("ready") else "",
        f"restarted {states[0]['restartCount']} times" if states[0].get("restartCount") else "",
        "being deleted" if "deletionTimestamp" in pod["metadata"] else "",
    ]
    return ", ".join(word for word in words if word)
