"""What the pods of `qwen-operator cache` print: reads it, chooses what goes, and shows it to people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_operator import untrusted
from qwen_operator.untrusted import clean

MOST_BYTES = 1_000_000
_LEVELS = 6
_MOST_ROWS = 1000
_LARGEST = 10**15
_WORDS = {
    "InUse": "in use",
    "Downloading": "downloading",
    "Starting": "starting",
    "Partial": "incomplete",
    "Idle": "idle",
}
_FREE = ("Idle", "Partial")
_WHY = {
    "InUse": "an engine has it loaded",
    "Downloading": "a pod downloads it",
    "Starting": "a pod asked for it within the last hour, and its engine may be about to start",
}
_HEAD = ("PLACE", "MODEL", "HUB", "COMMIT", "SIZE", "LAST USED", "STATE")


@dataclass(frozen=True, slots=True)
class Row:
    """One model in one place. `last_used_seconds`: how long ago a pod asked for it, None if nobody knows."""

    place: str
    key: str
    hub: str
    repository: str
    commit: str
    bytes: int
    last_used_seconds: int | None
    state: str
    pod: str
    removed: bool
    file: str = ""

    @property
    def free(self) -> bool:
        """Whether nobody uses it."""
        return self.state in _FREE


@dataclass(frozen=True, slots=True)
class Page:
    """What one pod printed. `free_bytes`: what the disk of the cache has left."""

    rows: tuple[Row, ...]
    free_bytes: int


def read_page(text: str, place: str) -> Page:
    """The page in a pod's log. Raises ValueError with the reason if there is none."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    try:
        page = untrusted.decode(lines[-1].encode(), _LEVELS) if lines else None
    except ValueError:
        page = None
    if not isinstance(page, dict) or page.get("version") != 1:
        raise ValueError(f"the pod printed no list: {clean(text, 200) or 'its log is empty'}")
    if "error" in page:
        raise ValueError(clean(page["error"], 300))
    models = page.get("models")
    if not isinstance(models, list) or not all(isinstance(one, dict) for one in models):
        raise ValueError("the pod printed no list")
    now = untrusted.whole(page.get("now"), 0, _LARGEST, 0)
    rows = tuple(_row(one, place, now) for one in models[:_MOST_ROWS])
    return Page(rows, untrusted.whole(page.get("freeBytes"), 0, _LARGEST, 0))


def _row(model: dict[str, Any], place: str, now: int) -> Row:
    state = model.get("state")
    used = untrusted.whole(model.get("lastUsed"), 0, _LARGEST, 0)
    texts = [clean(model.get(name, ""), 300) for name in ("key", "hub", "repository", "commit", "pod")]
    key, hub, repository, commit, pod = texts
    return Row(
        place=place,
        key=key,
        hub=hub,
        repository=repository,
        commit=commit,
        bytes=untrusted.whole(model.get("bytes"), 0, _LARGEST, 0),
        last_used_seconds=max(0, now - used) if used else None,
        # A state that this version does not know must not be removed.
        state=state if isinstance(state, str) and state in _WORDS else "InUse",
        pod=pod,
        removed=model.get("removed") is True,
        file=clean(model.get("file", ""), 256),
    )


def chosen(rows: Sequence[Row], names: Iterable[str]) -> tuple[list[Row], list[str]]:
    """The rows that these names mean, and the names that mean none.

    A name is ORGANISATION/NAME, perhaps with :FILE, with the hub before it, and with @COMMIT or its beginning at the
    end.
    """
    found: dict[tuple[str, str], Row] = {}
    unknown = []
    for name in names:
        matching = [row for row in rows if _means(name, row)]
        found |= {(row.place, row.key): row for row in matching}
        if not matching:
            unknown.append(name)
    return list(found.values()), unknown


def _means(name: str, row: Row) -> bool:
    hub, separator, rest = name.rpartition("://")
    model, _, commit = rest.partition("@")
    return (
        model in (row.repository, model_of(row)) and row.commit.startswith(commit) and (not separator or hub == row.hub)
    )


def table(rows: Sequence[Row]) -> str:
    """The rows for people, the largest first in each place."""
    ordered = sorted(rows, key=lambda row: (row.place, -row.bytes, row.key))
    cells = [_HEAD, *(_cells(row) for row in ordered)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(_HEAD))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def room(place: str, rows: Sequence[Row], free: int, limit_gib: int) -> str:
    """How full a place is, for people. `free`: bytes that its disk has left. `limit_gib`: 0 if nobody knows it."""
    used = size(sum(row.bytes for row in rows if row.place == place))
    limit = f" of {limit_gib} GiB (cache.sizeGiB)" if limit_gib else ""
    return f"{place}: {used}{limit} used, {size(free)} of the disk free"


def _cells(row: Row) -> tuple[str, ...]:
    state = f"{_WORDS[row.state]} ({row.pod})" if row.state == "Starting" and row.pod else _WORDS[row.state]
    used = "now" if row.state in ("InUse", "Downloading") else ago(row.last_used_seconds)
    return row.place, model_of(row), row.hub, row.commit[:12], size(row.bytes), used, state


def model_of(row: Row) -> str:
    """The model's name, with its file if it is one of a GGUF repository."""
    return f"{row.repository}:{row.file}" if row.file else row.repository or row.key


def refused(row: Row) -> str:
    """Why a row stays, for people."""
    return f"{model_of(row)} at {row.commit[:12]} stays on {row.place}: {_WHY.get(row.state, 'it was not removed')}"


def size(count: int) -> str:
    """Bytes for people, in decimal units as disks have them."""
    return f"{count / 10**9:.1f} GB" if count >= 10**8 else f"{count / 10**6:.1f} MB"


def ago(seconds: int | None) -> str:
    """How long ago, in the units of kubectl."""
    if seconds is None:
        return "unknown"
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= length:
            return f"{seconds // length}{unit} ago"
    return f"{seconds}s ago"


def as_json(row: Row) -> dict[str, Any]:
    """The row for programs."""
    return {
        "place": row.place,
        "model": row.repository,
        "hub": row.hub,
        "commit": row.commit[:40],
        "file": row.file,
        "bytes": row.bytes,
        "lastUsedSeconds": row.last_used_seconds,
        "state": row.state,
        "pod": row.pod,
    }
