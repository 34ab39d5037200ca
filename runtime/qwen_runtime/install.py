"""Copies this archive into a volume. The engine's container runs it from there, so the engine image is not changed."""

import os
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

NAME = "qwen-runtime.pyz"


class NotInstalled(Exception):
    """The archive could not be copied. The text is one sentence for the init container's log."""


def install(archive: Path, folder: Path) -> Path:
    """Copy `archive` into `folder` under its fixed name. The file appears complete, and every uid can read it."""
    if not zipfile.is_zipfile(archive):
        raise NotInstalled(f"{archive} is not the {NAME} archive; run install from the archive itself")
    target = folder / NAME
    partial = folder / f".{NAME}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(archive, partial)
        partial.chmod(0o755)
        partial.replace(target)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise NotInstalled(f"cannot copy {archive} to {target}: {error.strerror}") from None
    return target
