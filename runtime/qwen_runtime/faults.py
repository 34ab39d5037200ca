"""The only exception of an inspection. It has a reason, a sentence for people, and numbers for programs."""

from dataclasses import dataclass
from typing import Any

from qwen_runtime.checkpoints.reading import InvalidFactsError, parse_json
from qwen_runtime.reasons import ReportReason


@dataclass(eq=False)
class Fault(Exception):
    """A checkpoint that must not be served."""

    reason: ReportReason
    message: str
    file: str = ""
    bytes_wanted: int | None = None
    bytes_found: int | None = None

    def report(self) -> dict[str, Any]:
        """The error report; keys that do not apply are left out."""
        error: dict[str, Any] = {"reason": self.reason.value, "message": self.message}
        if self.file:
            error["file"] = self.file
        if self.bytes_wanted is not None and self.bytes_found is not None:
            error |= {"bytesWanted": self.bytes_wanted, "bytesFound": self.bytes_found}
        return {"version": 1, "error": error}


def parsed(data: bytes, file: str, limit: int) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes. Anything else raises Fault with InvalidConfig."""
    try:
        return parse_json(data, file, limit)
    except InvalidFactsError as error:
        raise Fault(ReportReason.INVALID_CONFIG, f"{error}.", file) from None
