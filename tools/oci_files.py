"""Reads single files out of an image archive, without unpacking it.

Both forms are read: an OCI archive (`buildah push ... oci-archive:FILE`) and what a recent `docker save` writes, which
has the same layout inside.
"""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

# An opaque directory hides what lower layers have in it; a whiteout hides one file.
_OPAQUE, _WHITEOUT = ".wh..wh..opq", ".wh."
_MOST_BYTES = 64_000_000


class ImageError(Exception):
    """The archive cannot be read. The text says why."""


def files(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The regular files of the image whose paths, without the first slash, are wanted. Raises ImageError."""
    try:
        with tarfile.open(archive) as tar:
            found: dict[str, bytes] = {}
            for layer in _layers(tar):
                _apply(layer, wanted, found)
            return found
    except (OSError, tarfile.TarError, LookupError, TypeError, ValueError) as error:
        raise ImageError(f"{archive}: {error}") from error


def digest(archive: Path) -> str:
    """The digest of the image's manifest, sha256:... Raises ImageError."""
    try:
        with tarfile.open(archive) as tar:
            return str(_json(tar, "index.json")["manifests"][0]["digest"])
    except (OSError, tarfile.TarError, LookupError, TypeError, ValueError) as error:
        raise ImageError(f"{archive}: {error}") from error


def _layers(tar: tarfile.TarFile) -> Iterator[IO[bytes]]:
    manifest = _json(tar, _blob(_json(tar, "index.json")["manifests"][0]["digest"]))
    if "manifests" in manifest:
        manifest = _json(tar, _blob(manifest["manifests"][0]["digest"]))
    for layer in manifest["layers"]:
        blob = _open(tar, _blob(layer["digest"]))
        yield cast("IO[bytes]", gzip.GzipFile(fileobj=blob)) if "gzip" in layer["mediaType"] else blob


def _apply(layer: IO[bytes], wanted: Callable[[str], bool], found: dict[str, bytes]) -> None:
    with tarfile.open(fileobj=layer, mode="r|") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            name = str(path).removeprefix("./").lstrip("/")
            folder = str(PurePosixPath(name).parent)
            if path.name == _OPAQUE:
                _drop(found, folder)
            elif path.name.startswith(_WHITEOUT):
                _drop(found, f"{folder}/{path.name.removeprefix(_WHITEOUT)}".removeprefix("./"))
            elif member.isfile() and wanted(name):
                content = tar.extractfile(member)
                found[name] = content.read(_MOST_BYTES) if content else b""


def _drop(found: dict[str, bytes], path: str) -> None:
    for name in [one for one in found if one == path or one.startswith(f"{path}/")]:
        del found[name]


def _blob(value: str) -> str:
    return "blobs/" + value.replace(":", "/")


def _open(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    handle = tar.extractfile(name)
    if handle is None:
        raise ValueError(f"{name} is no file")
    return handle


def _json(tar: tarfile.TarFile, name: str) -> dict[str, Any]:
    value = json.load(BytesIO(_open(tar, name).read()))
    if not isinstance(value, dict):
        raise TypeError(f"{name} is no JSON object")
    return value
