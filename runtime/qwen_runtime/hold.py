"""Keeps a cached model from being removed while an engine runs.

The engine mounts its model read-only, so it can only read and lock a file of it. The kernel ends the lock with this
process, however it ends. A container that makes room in the cache tries the same lock first.
"""

import fcntl
import os
import time
from pathlib import Path

from qwen_runtime.reasons import ReportReason
from qwen_runtime.report import bounded

PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.2


class NotHeld(Exception):
    """The file cannot be locked. The text says why."""

    def report(self) -> bytes:
        """The termination message."""
        content = {"reason": ReportReason.MODEL_NOT_FOUND.value, "phase": "Starting", "exitCode": 1, "log": [str(self)]}
        return bounded(content)


def hold(path: Path, patience: float = PATIENCE_SECONDS) -> int:
    """Lock the file until this process ends, and return its descriptor, which no child inherits.

    Raises NotHeld, also if another process keeps it from the lock for `patience` seconds.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        # The kubelet makes an empty folder in place of one that is gone.
        raise _gone(path) from None
    try:
        _lock(descriptor, path, patience)
        # Whoever removes the model has the lock until all of it is gone.
        if os.fstat(descriptor).st_nlink == 0:
            raise _gone(path)
    except NotHeld:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        raise _gone(path) from None
    return descriptor


def _lock(descriptor: int, path: Path, patience: float) -> None:
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                message = (
                    f"another process holds the lock of {path}: find the pod that mounts this model, and delete it"
                )
                raise NotHeld(message) from None
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            message = f"{path} cannot be locked ({error.strerror}): the cache needs a file system with locks"
            raise NotHeld(message) from None
        else:
            return


def _gone(path: Path) -> NotHeld:
    return NotHeld(
        f"{path.parent} is no longer in the cache: delete this pod, and its successor fetches the model again"
    )
