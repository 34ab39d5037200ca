"""From an engine's last log lines to one reason.

The rules are an ordered table: the first rule with a matching line wins, whatever the order of the lines. So a cause
(one rank out of memory) beats its consequence (the other ranks' broken connections), which is often logged later.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen_runtime.log_lines import LogLines
from qwen_runtime.reasons import ReportReason

# The pattern with this group matches the path of a missing shard.
_SHARD = "shard"


@dataclass(frozen=True, slots=True)
class Classification:
    """A reason and the log line that gave it; the line is empty when nothing matched."""

    reason: ReportReason
    line: str = ""


def classify(lines: Sequence[str], known: LogLines, exists: Callable[[str], bool]) -> Classification:
    """The reason for log lines, oldest first. Of several lines of the winning rule the last is kept.

    `exists` tells whether a path is there: the engine's reader says "No such file" for a shard that it may not open.
    """
    signal = [line for line in lines if not known.noise.search(line)]
    for reason, patterns in known.failures:
        matching = [line for line in signal if any(pattern.search(line) for pattern in patterns)]
        if matching:
            line = matching[-1]
            shard = _shard(line, patterns)
            hidden = reason is ReportReason.MODEL_NOT_FOUND and shard is not None and exists(shard)
            return Classification(ReportReason.UNREADABLE_WEIGHTS if hidden else reason, line)
    return Classification(ReportReason.UNKNOWN)


def _shard(line: str, patterns: Sequence[re.Pattern[str]]) -> str | None:
    matches = (pattern.search(line) for pattern in patterns if _SHARD in pattern.groupindex)
    return next((match[_SHARD] for match in matches if match), None)
