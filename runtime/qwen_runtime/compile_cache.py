"""Where an engine keeps what it has compiled, so that the next start need not compile it again.

SGLang puts the caches of Triton, Inductor, CUDA, FlashInfer and others below SGLANG_CACHE_DIR. The folder that the pod
mounts is for one engine and one GPU product. The driver is known only on the node, so its folder is chosen here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

VARIABLE = "SGLANG_CACHE_DIR"
DRIVER_FILE = Path("/proc/driver/nvidia/version")
NO_DRIVER = "none"
USER = 65532
"""The user of engines for which neither the spec nor the chart's ipcLock gives another one."""
_MODULE = re.compile(r"Kernel Module\b.*?\s(\d{1,5}(?:\.\d{1,5}){1,3})\s", re.ASCII)
_MOST = 4096


def driver_version(path: Path = DRIVER_FILE) -> str:
    """The version of the NVIDIA driver; "none" if there is none."""
    try:
        with path.open("rb") as file:
            found = _MODULE.search(file.read(_MOST).decode("utf-8", "replace"))
    except OSError:
        return NO_DRIVER
    return found.group(1) if found else NO_DRIVER


def use(folder: Path, driver: str, user: int) -> str:
    """Let the engine keep its caches in the folder of this driver. Returns why it cannot, "" if it can.

    Then it keeps them where the pod's own settings say, and compiles as without this. What the libraries make there
    only its maker may write, so an engine of another `user` than usual, such as 0 with ipcLock, has its own folder.
    """
    target = folder / (driver if user == USER else f"{driver}-{user}")
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        return f"{target} cannot be made ({error.strerror}), so the engine compiles without a cache"
    if not os.access(target, os.W_OK | os.X_OK):
        return f"{target} cannot be written, so the engine compiles without a cache"
    os.environ[VARIABLE] = str(target)
    return ""
