"""From an engine's last log lines to one reason.

The rules are an ordered table. The first rule with a matching line wins, whatever the order of the lines. So a cause
(one rank out of memory) wins over its consequence (the other ranks' broken connections), which is often logged later.
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
    """A reason, and the log line that shows it. The line is empty if nothing matched."""

    reason: ReportReason
    line: str = ""


def classify(lines: Sequence[str], log_lines: LogLines, exists: Callable[[str], bool]) -> Classification:
    """The reason that log lines show, oldest line first. If several lines match the winning rule, the last one counts.

    `exists` returns whether a path exists. It is needed because the engine's reader logs "No such file" for a shard
    that it has no right to open.
    """
    signal = [line for line in lines if not log_lines.noise.search(line)]
    for reason, patterns in log_lines.failures:
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
