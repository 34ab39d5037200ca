"""Keeps a cached model from being removed while an engine runs.

The engine mounts its model read-only, so it can only read and lock a file of it. The kernel ends the lock with this
process, however it ends. A container that makes room in the cache tries the same lock first.
"""

import fcntl
import os
from pathlib import Path

from qwen_runtime.reasons import ReportReason
from qwen_runtime.report import bounded


class NotHeld(Exception):
    """The file cannot be locked. The text says why."""

    def report(self) -> bytes:
        """The termination message."""
        content = {"reason": ReportReason.MODEL_NOT_FOUND.value, "phase": "Starting", "exitCode": 1, "log": [str(self)]}
        return bounded(content)


def hold(path: Path) -> int:
    """Lock the file until this process ends, and return its descriptor, which no child inherits. Raises NotHeld."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        # The kubelet makes an empty folder in place of one that is gone.
        raise NotHeld(
            f"{path.parent} is no longer in the cache: delete this pod, and its successor fetches the model again"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        os.close(descriptor)
        raise NotHeld(f"{path} cannot be locked ({error.strerror}): the cache needs a file system with locks") from None
    return descriptor
