"""How far a download and the start of an engine are: from the page of the pod to `status.progress`. Pure.

The status shows steps of some percent, and not more often than every STEP_SECONDS. What it shows is also the memory: a
new leader goes on with it until the pod's page was read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from qwen_operator import objects, untrusted
from qwen_operator.actions.events import rfc3339
from qwen_operator.api.conditions import Reason
from qwen_operator.replicas.pod_state import PodState, fetch_of
from qwen_runtime.checkpoints.model import MAX_BYTES
from qwen_runtime.reasons import Phase

PAGE_BYTES = 4096
STEP_SECONDS = 10.0
DOWNLOAD = "Download"
_STEP_PERCENT = {DOWNLOAD: 5, Phase.LOAD_WEIGHTS.value: 10, Phase.CAPTURE_GRAPHS.value: 25}
"""So a start costs at most 17 writes, and a download at most 21."""
_PHASES = (DOWNLOAD, Phase.LOAD_WEIGHTS.value, Phase.CAPTURE_GRAPHS.value, Phase.WARM_UP.value)
_COLUMNS = {DOWNLOAD: "Downloading", Phase.CAPTURE_GRAPHS.value: "CapturingGraphs", Phase.WARM_UP.value: "WarmingUp"}
_LONGEST_SECONDS = 10 * 86_400
_MOST_STEPS = 10**6
_MOST_MILLISECONDS = _LONGEST_SECONDS * 1000
_GB, _MB = 10**9, 10**6


@dataclass(frozen=True, slots=True)
class FetchPage:
    """What a pod says about its download: bytes that have arrived, bytes of the model, and bytes per second."""

    done: int
    total: int
    rate: int

    phase = DOWNLOAD

    @property
    def percent(self) -> int:
        """Whole percent, 100 only at the end."""
        return self.done * 100 // self.total

    def left_seconds(self) -> float | None:
        """Seconds until the end at this rate; None if nothing arrives."""
        return (self.total - self.done) / self.rate if self.rate else None

    def numbers(self, _weight_bytes: int) -> dict[str, Any]:
        """The members of `status.progress` with numbers."""
        members = {"bytesDone": self.done, "bytesTotal": self.total, "bytesPerSecond": self.rate}
        return {"percent": self.percent, **members}


@dataclass(frozen=True, slots=True)
class StartPage:
    """What a pod says about the start of its engine: `done` of `total` steps of a phase, after so many seconds.

    `total` is 0 if the engine has not said how many there are. The steps of LoadWeights are files of weights.
    """

    phase: str
    done: int
    total: int
    seconds: float

    @property
    def percent(self) -> int | None:
        """Whole percent; None if there is only one step, which says nothing before its end."""
        return self.done * 100 // self.total if self.total > 1 else None

    def left_seconds(self) -> float | None:
        """Seconds until the end of the phase if the other steps take as long; None before the first one is done."""
        return self.seconds * (self.total - self.done) / self.done if self.done and self.percent is not None else None

    def numbers(self, weight_bytes: int) -> dict[str, Any]:
        """The members of `status.progress` with numbers. All files of weights count as equally large."""
        if self.percent is None:
            return {}
        if self.phase != Phase.LOAD_WEIGHTS.value or not weight_bytes:
            return {"percent": self.percent}
        done = weight_bytes * self.done // self.total
        rate = int(done / self.seconds) if self.seconds else 0
        return {"percent": self.percent, "bytesDone": done, "bytesTotal": weight_bytes, "bytesPerSecond": rate}


ProgressPage = FetchPage | StartPage


def read_page(content: bytes) -> ProgressPage | None:
    """The page of a pod. None if the pod has nothing to show yet. Raises ValueError for another page."""
    page = untrusted.report(content.decode("utf-8", "replace"))
    phase = page.get("phase")
    if page.get("version") != 1 or phase not in (DOWNLOAD, *(str(one.value) for one in Phase)):
        raise ValueError("the page has no progress of a download or a start")
    if phase == DOWNLOAD:
        return _fetch_page(page)
    if phase not in _PHASES:
        return None
    total = untrusted.whole(page.get("stepsTotal"), 0, _MOST_STEPS, 0)
    done = untrusted.whole(page.get("stepsDone"), 0, total, 0)
    milliseconds = untrusted.whole(page.get("milliseconds"), 0, _MOST_MILLISECONDS, 0)
    return StartPage(str(phase), done, total, milliseconds / 1000)


def _fetch_page(page: Mapping[str, Any]) -> FetchPage | None:
    total = untrusted.whole(page.get("bytesTotal"), 0, MAX_BYTES, 0)
    if not total:
        return None
    done = untrusted.whole(page.get("bytesDone"), 0, total, 0)
    return FetchPage(done, total, untrusted.whole(page.get("bytesPerSecond"), 0, MAX_BYTES, 0))


def is_fetching(pod: PodState) -> bool:
    """Whether the pod downloads its model now."""
    return not pod.deleting and not pod.ended and fetch_of(pod.manifest).running


def is_starting(pod: PodState) -> bool:
    """Whether the engine of the pod starts now, and says how far it is. The other ranks of a replica say nothing."""
    return pod.reason is Reason.LOADING and not pod.up and pod.rank == 0


def progress_of(
    shown: Mapping[str, Any],
    pods: Iterable[PodState],
    pages: Mapping[str, ProgressPage],
    now: datetime,
    weight_bytes: Mapping[str, int],
) -> dict[str, Any] | None:
    """`status.progress`: of the pod that it shows already, or else of the one that is farthest. None if there is none.

    `shown` is the present one, {} if there is none. `pages` are by uid. `weight_bytes` are by revision.
    """
    busy = [pod for pod in pods if is_fetching(pod) or is_starting(pod)]
    same = next((pod for pod in busy if pod.name == shown.get("pod")), None)
    # The last page of a download is still there when its engine starts.
    read = {
        pod.uid: page
        for pod in busy
        if (page := pages.get(pod.uid)) is not None and isinstance(page, StartPage) == is_starting(pod)
    }
    known = [pod for pod in busy if pod.uid in read]
    pod = same or max(known, key=lambda one: (*_how_far(read[one.uid]), one.name), default=None)
    if pod is None:
        return None
    page = read.get(pod.uid)
    if page is None:
        # The numbers of a download say nothing about the start that follows it.
        return dict(shown) if (shown.get("phase") == DOWNLOAD) == is_fetching(pod) else None
    if same is not None and not _is_step(shown, page, now):
        return dict(shown)
    left = page.left_seconds()
    ends = {} if left is None or left >= _LONGEST_SECONDS else {"finishTime": rfc3339(now + timedelta(seconds=left))}
    numbers = page.numbers(weight_bytes.get(pod.revision, 0))
    return {"phase": page.phase, "pod": pod.name, **numbers, "time": rfc3339(now), **ends}


def column(progress: Mapping[str, Any] | None, reason: str) -> str | None:
    """The STATUS column with the progress, for a reason that it belongs to; None if there is nothing to add."""
    phase = (progress or {}).get("phase")
    of_reason = Reason.DOWNLOADING if phase == DOWNLOAD else Reason.LOADING
    if progress is None or phase not in _PHASES or reason != of_reason:
        return None
    word = _COLUMNS.get(str(phase), "Loading")
    return f"{word} {progress['percent']}%" if "percent" in progress else word


def sentence(progress: Mapping[str, Any]) -> str:
    """The numbers for people, as they were at the last step."""
    until = f", until about {progress['finishTime']}" if progress.get("finishTime") else ""
    done, whole, rate = (untrusted.whole(progress.get(key), 0, MAX_BYTES, 0) for key in _NUMBERS)
    amount = f"{_share(done, whole)} at {_rate(rate)}{until}"
    if progress.get("phase") == DOWNLOAD:
        return amount
    if progress.get("phase") == Phase.LOAD_WEIGHTS.value:
        return f"it reads the weights, {amount}" if whole else "it reads the weights"
    if progress.get("phase") == Phase.CAPTURE_GRAPHS.value:
        share = f", {progress['percent']} %{until}" if "percent" in progress else ""
        return f"it captures CUDA graphs{share}"
    return "it warms up"


def _share(done: int, whole: int) -> str:
    if whole >= _GB:
        return f"{done / _GB:.1f} of {whole / _GB:.1f} GB"
    return f"{done / _MB:.0f} of {whole / _MB:.0f} MB" if whole >= _MB else f"{done} of {whole} bytes"


def _rate(rate: int) -> str:
    if rate >= 10 * _MB:
        return f"{rate / _MB:.0f} MB/s"
    return f"{rate / _MB:.1f} MB/s" if rate >= _MB // 10 else f"{rate} bytes/s"


_NUMBERS = ("bytesDone", "bytesTotal", "bytesPerSecond")


def _how_far(page: ProgressPage) -> tuple[int, float]:
    return _PHASES.index(page.phase), page.done / (page.total or 1)


def _is_step(shown: Mapping[str, Any], page: ProgressPage, now: datetime) -> bool:
    if shown.get("phase") != page.phase:
        return True
    if isinstance(page, FetchPage) and shown.get("bytesTotal") != page.total:
        return True
    if page.percent is None:
        return False
    moved = abs(page.percent - untrusted.whole(shown.get("percent"), 0, 100, 0))
    since = objects.moment(shown.get("time"))
    age = (now - since).total_seconds() if since is not None else STEP_SECONDS
    # A time in the future comes from another clock.
    return moved >= _STEP_PERCENT[page.phase] and not 0 <= age < STEP_SECONDS
