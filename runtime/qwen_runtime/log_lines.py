"""The lines of an engine's log that matter, by version of SGLang.

They are in the operator's folder of that version (`engines/sglang_.../log_lines.json`), and `image_layer.py` packs them
into the archive. So a new version changes only one folder, and this package never imports the operator. The archive
finds out the version from the installed package.
"""

import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from qwen_runtime.reasons import Phase, ReportReason
from qwen_runtime.versions import nearest

FOLDER = "engines"  # of this package, in the archive only

# A progress bar has no line end, so a time stamp may stand in the middle of a line.
_START = r"(?:^|\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^\]]*\] )"


class NoLogLines(Exception):
    """This package runs outside its archive. The text is one sentence for the person who runs it."""


@dataclass(frozen=True, slots=True)
class LogLines:
    """The patterns of one version. `phases` are in reverse order of start-up.

    `bars` find the progress bar of a phase; the groups `done` and `total` count its steps.
    `processes` matches the names of the engine's own processes, and `schedulers` those that run in step. `killed`
    matches lines about a process that a signal of `processes.FATAL` ended.
    `failures` are ordered: a reason is before the reasons that it causes. `noise` matches lines that only mention
    failures.
    """

    version: str
    phases: tuple[tuple[Phase, re.Pattern[str]], ...]
    bars: Mapping[Phase, re.Pattern[str]]
    crash: re.Pattern[str]
    killed: re.Pattern[str]
    processes: re.Pattern[str]
    schedulers: re.Pattern[str]
    bind_failed: re.Pattern[str]
    shutting_down: re.Pattern[str]
    health_unanswered: re.Pattern[str]
    health_answered: re.Pattern[str]
    noise: re.Pattern[str]
    failures: tuple[tuple[ReportReason, tuple[re.Pattern[str], ...]], ...]

    @classmethod
    def parse(cls, text: str) -> "LogLines":
        """The patterns of a log_lines.json, which are regular expressions.

        A leading ^ also matches after a time stamp. The case of letters does not count in `failures`. Raises KeyError,
        ValueError or re.error for another shape.
        """
        record = json.loads(text)
        return cls(
            version=record["sglang"],
            phases=tuple((Phase(one["phase"]), _any(one["lines"])) for one in record["phases"]),
            bars={Phase(phase): re.compile(bar) for phase, bar in record["bars"].items()},
            crash=_any(record["crash"]),
            killed=_any(record["killed"]),
            processes=_any(record["processes"]),
            schedulers=_any(record["schedulers"]),
            bind_failed=_any(record["bindFailed"]),
            shutting_down=_any(record["shuttingDown"]),
            health_unanswered=_any(record["healthUnanswered"]),
            health_answered=_any(record["healthAnswered"]),
            noise=_any(record["noise"]),
            failures=tuple(_failure(one) for one in record["failures"]),
        )


def _any(patterns: Sequence[str]) -> re.Pattern[str]:
    anchored = (_START + one[1:] if one.startswith("^") else one for one in patterns)
    return re.compile("|".join(f"(?:{one})" for one in anchored))


def _failure(record: Mapping[str, Any]) -> tuple[ReportReason, tuple[re.Pattern[str], ...]]:
    return ReportReason(record["reason"]), tuple(re.compile(one, re.IGNORECASE) for one in record["lines"])


def installed() -> LogLines:
    """The patterns of the SGLang that this Python has, or of the nearest known version. Raises NoLogLines."""
    folder = files(__package__) / FOLDER
    if not folder.is_dir():
        raise NoLogLines("this copy has no log lines of SGLang; run the archive that runtime/image_layer.py makes")
    texts = [file.read_text(encoding="utf-8") for file in folder.iterdir()]
    by_version = {str(json.loads(text)["sglang"]): text for text in texts}
    return LogLines.parse(by_version[nearest(_installed_version(), by_version)])


def _installed_version() -> str:
    try:
        return str(importlib.metadata.version("sglang"))
    except importlib.metadata.PackageNotFoundError:
        return ""
