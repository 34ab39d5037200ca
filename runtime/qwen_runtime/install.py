"""Copies this archive into a volume, from where the engine's container runs it: the engine image stays upstream's."""

import os
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

NAME = "qwen-runtime.pyz"


class NotInstalled(Exception):
    """The sentence for the person who reads the init container's log."""


def install(archive: Path, folder: Path) -> Path:
    """Put `archive` into `folder` under its well-known name, whole or not at all, readable for every uid."""
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
