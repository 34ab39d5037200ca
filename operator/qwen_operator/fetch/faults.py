"""Why a model cannot be fetched."""

from __future__ import annotations

import errno

from qwen_operator.api.conditions import Reason
from qwen_runtime.report import bounded

PHASE = "Download"


class FetchError(Exception):
    """The model cannot be fetched. The text says in one sentence, without a full stop, what to do about it.

    `silent`: the hub gave no answer that says more, so it may give one later.
    """

    def __init__(self, reason: Reason, message: str, *, silent: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.silent = silent

    def report(self, present: int = 0) -> bytes:
        """The termination message, in the form of the reports of qwen-runtime. `present`: so many bytes are there."""
        told = {"reason": str(self.reason), "phase": PHASE, "exitCode": 1, "log": [str(self)], "presentBytes": present}
        return bounded({**told, "silent": True} if self.silent else told)


def told(error: FetchError | OSError) -> FetchError:
    """The error as one that says what to do. An OSError comes from the files of the cache."""
    if isinstance(error, FetchError):
        return error
    reason = full(error) or Reason.CACHE_UNUSABLE
    return FetchError(reason, f"the cache cannot be written: {error.strerror or type(error).__name__}")


def full(error: OSError) -> Reason | None:
    """The reason for a disk or a quota that is full; None for other errors."""
    return Reason.DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
