"""How far the download of a model is: from the page of the pod that fetches it to `status.progress`. Pure.

The status shows steps of STEP_PERCENT, and not more often than every STEP_SECONDS. What it shows is also the memory:
a new leader goes on with it until the pod's page was read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from qwen_operator import objects, untrusted
from qwen_operator.actions.events import rfc3339
from qwen_operator.replicas.pod_state import PodState, fetch_of
from qwen_runtime.checkpoints.model import MAX_BYTES

PAGE_BYTES = 4096
STEP_PERCENT = 5
STEP_SECONDS = 10.0
_PHASE = "Download"
_LONGEST_SECONDS = 10 * 86_400
_GB = 10**9


@dataclass(frozen=True, slots=True)
class FetchPage:
    """What a pod says about its download: bytes that have arrived, bytes of the model, and bytes per second."""

    done: int
    total: int
    rate: int

    @property
    def percent(self) -> int:
        """Whole percent, 100 only at the end."""
        return self.done * 100 // self.total


def read_page(content: bytes) -> FetchPage | None:
    """The page of a pod. None if the pod does not know yet how much there is. Raises ValueError for another page."""
    page = untrusted.report(content.decode("utf-8", "replace"))
    if page.get("version") != 1 or page.get("phase") != _PHASE:
        raise ValueError("the page has no progress of a download")
    total = untrusted.whole(page.get("bytesTotal"), 0, MAX_BYTES, 0)
    if not total:
        return None
    done = untrusted.whole(page.get("bytesDone"), 0, total, 0)
    return FetchPage(done, total, untrusted.whole(page.get("bytesPerSecond"), 0, MAX_BYTES, 0))


def is_fetching(pod: PodState) -> bool:
    """Whether the pod downloads its model now."""
    return not pod.deleting and not pod.ended and fetch_of(pod.manifest).running


def progress_of(
    shown: Mapping[str, Any], pods: Iterable[PodState], pages: Mapping[str, FetchPage], now: datetime
) -> dict[str, Any] | None:
    """`status.progress`: of the pod that it shows already, or else of the one that is farthest. None if none downloads.

    `shown` is the present one, {} if there is none. `pages` are by uid.
    """
    fetching = [pod for pod in pods if is_fetching(pod)]
    same = next((pod for pod in fetching if pod.name == shown.get("pod")), None)
    read = [pod for pod in fetching if pod.uid in pages]
    pod = same or max(read, key=lambda one: (pages[one.uid].done, one.name), default=None)
    if pod is None:
        return None
    page = pages.get(pod.uid)
    if page is None or (same is not None and not _is_step(shown, page, now)):
        return dict(shown)
    left = (page.total - page.done) / page.rate if page.rate else _LONGEST_SECONDS
    ends = {"finishTime": rfc3339(now + timedelta(seconds=left))} if left < _LONGEST_SECONDS else {}
    return {
        "phase": _PHASE,
        "pod": pod.name,
        "percent": page.percent,
        "bytesDone": page.done,
        "bytesTotal": page.total,
        "bytesPerSecond": page.rate,
        "time": rfc3339(now),
        **ends,
    }


def sentence(progress: Mapping[str, Any]) -> str:
    """The numbers for people, as they were at the last step."""
    done, whole, rate = (untrusted.whole(progress.get(key), 0, MAX_BYTES, 0) for key in _NUMBERS)
    until = f", until about {progress['finishTime']}" if progress.get("finishTime") else ""
    return f"{done / _GB:.1f} of {whole / _GB:.1f} GB at {rate / 10**6:.0f} MB/s{until}"


_NUMBERS = ("bytesDone", "bytesTotal", "bytesPerSecond")


def _is_step(shown: Mapping[str, Any], page: FetchPage, now: datetime) -> bool:
    if shown.get("bytesTotal") != page.total:
        return True
    moved = abs(page.percent - untrusted.whole(shown.get("percent"), 0, 100, 0))
    since = objects.moment(shown.get("time"))
    age = (now - since).total_seconds() if since is not None else STEP_SECONDS
    # A time in the future comes from another clock.
    return moved >= STEP_PERCENT and not 0 <= age < STEP_SECONDS
