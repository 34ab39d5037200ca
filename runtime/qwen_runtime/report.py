"""Reports for the termination message: canonical JSON that always fits.

The kubelet keeps at most 4096 bytes of a termination message and cuts a longer one in the middle of the JSON. A report
has at most 3072 bytes. To reach that, the oldest log lines are dropped first, and then long texts are cut.
"""

import json
import os
import select
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIMIT_BYTES = 3072
LOG_LINES = 10
LINE_BYTES = 400
TERMINATION_LOG = Path("/dev/termination-log")
_TEXT_LIMITS = (1024, 512, 256, 128, 64)


def canonical(report: Mapping[str, Any]) -> bytes:
    """Sorted keys, no spaces, UTF-8; a lone surrogate (a file name that is not UTF-8) becomes '?'."""
    text = json.dumps(report, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "replace")


def shorten(text: str, limit: int) -> str:
    """`text`, or its beginning and an ellipsis, so that its JSON form has at most `limit` bytes without the quotes."""
    if len(text) <= limit and _json_size(text) <= limit:
        return text
    low, high = 0, min(len(text), limit)
    while low < high:
        middle = (low + high + 1) // 2
        if _json_size(text[:middle]) + 3 <= limit:
            low = middle
        else:
            high = middle - 1
    return text[:low] + "…"


def _json_size(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")) - 2


def bounded(report: Mapping[str, Any]) -> bytes:
    """Canonical JSON of at most LIMIT_BYTES.

    `log` keeps its newest lines. Reports of this package have few keys, so it is enough to cut every text to 64 bytes.
    Otherwise it raises ValueError, because broken JSON is of no use.
    """
    fitted = dict(report)
    if "log" in fitted:
        fitted["log"] = [shorten(line, LINE_BYTES) for line in fitted["log"][-LOG_LINES:]]
        while len(fitted["log"]) > 1 and len(canonical(fitted)) > LIMIT_BYTES:
            fitted["log"] = fitted["log"][1:]
    data = canonical(fitted)
    for limit in _TEXT_LIMITS:
        if len(data) <= LIMIT_BYTES:
            return data
        data = canonical(_with_short_texts(fitted, limit))
    if len(data) > LIMIT_BYTES:
        raise ValueError(f"a report of {len(data)} bytes cannot be cut to {LIMIT_BYTES}; it has too many keys")
    return data


def _with_short_texts(value: Any, limit: int) -> Any:
    if isinstance(value, str):
        return shorten(value, limit)
    if isinstance(value, dict):
        return {key: _with_short_texts(item, limit) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_short_texts(item, limit) for item in value]
    return value


def deliver(data: bytes, target: Path | None) -> bool:
    """Write a report in place. Returns whether that worked; an error is printed to standard error.

    It writes in place, because the kubelet's file is a mount and cannot be replaced. Without a target it uses the
    kubelet's file if there is one, so that a run outside a pod leaves no file in /dev.
    """
    if target is None and not TERMINATION_LOG.exists():
        return True
    path = target or TERMINATION_LOG
    try:
        path.write_bytes(data)
    except OSError as error:
        complain(f"cannot write the report to {path}: {error.strerror}")
        return False
    return True


def complain(text: str) -> None:
    """Print one line to standard error. If its reader is stuck, drop the line, because this process must continue."""
    data = f"qwen-runtime: {text}\n".encode("utf-8", "replace")[: select.PIPE_BUF]
    try:
        if select.select([], [2], [], 1.0)[1]:
            os.write(2, data)
    except OSError:
        return
