"""The one exception of an inspection: a reason, a sentence for a person, and the numbers for a program."""

from dataclasses import dataclass
from typing import Any

from qwen_runtime.reasons import ReportReason
from qwen_runtime.report import shorten


@dataclass(eq=False)
class Fault(Exception):
    """A checkpoint that must not be served. `wanted` and `found` are bytes."""

    reason: ReportReason
    message: str
    file: str = ""
    wanted: int | None = None
    found: int | None = None

    def report(self) -> dict[str, Any]:
        """The error report; keys that do not apply are left out."""
        error: dict[str, Any] = {"reason": self.reason.value, "message": self.message}
        if self.file:
            error["file"] = self.file
        if self.wanted is not None and self.found is not None:
            error |= {"bytesWanted": self.wanted, "bytesFound": self.found}
        return {"version": 1, "error": error}


def shown(value: object) -> str:
    """A foreign value as it may stand in a message: JSON-like, short."""
    names = {True: "true", False: "false", None: "null"}
    if value is None or isinstance(value, bool):
        return names[value]
    if isinstance(value, str):
        return "'" + shorten(value, 80) + "'"
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    return shorten(str(value), 80)
