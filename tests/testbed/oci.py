"""Writes OCI image archives: adds a layer to an image, or makes an image from one layer.

A change of the operator's code must be in a pod within seconds. So only its own files become a new layer, and the rest
of the archive is copied. A container builder would unpack and repack everything.
"""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
NAME_ANNOTATION = "org.opencontainers.image.ref.name"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

Json = dict[str, Any]


def tar_tree(root: Path, target: Path) -> None:
    """Packs `root` into an uncompressed tar that depends only on names, contents and the executable bit."""
    with tarfile.open(target, "w") as archive:
        for path in sorted(root.rglob("*")):
            entry = archive.gettarinfo(path, arcname=path.relative_to(root).as_posix())
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = "root"
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            if entry.isreg():
                with path.open("rb") as handle:
                    archive.addfile(entry, handle)
            else:
                archive.addfile(entry)


def write_image(target: Path, name: str, layer: Path, base: Path | None = None) -> None:
    """Writes the OCI archive `target`: the image of the archive `base` (None: nothing) with the tar `layer` on top.

    `name` is the full reference that the image gets when it is imported. The settings (user, environment) are
    those of `base`.
    """
    manifest, config = _read(base) if base else _nothing()
    inherited = [_blob_path(descriptor["digest"]) for descriptor in manifest["layers"]]
    with layer.open("rb") as handle:
        digest = "sha256:" + hashlib.file_digest(handle, "sha256").hexdigest()
    manifest["layers"].append({"mediaType": LAYER_TYPE, "digest": digest, "size": layer.stat().st_size})
    config["rootfs"]["diff_ids"].append(digest)
    config.setdefault("history", []).append({"created_by": name})
    with tarfile.open(target, "w") as archive:
        if base:
            _copy(base, inherited, archive)
        archive.add(layer, _blob_path(digest))
        manifest["config"] = _add_json(archive, config, CONFIG_TYPE)
        descriptor = _add_json(archive, manifest, MANIFEST_TYPE)
        descriptor["annotations"] = {NAME_ANNOTATION: name}
        _add(archive, "index.json", _encode({"schemaVersion": 2, "manifests": [descriptor]}))
        _add(archive, "oci-layout", _encode({"imageLayoutVersion": "1.0.0"}))


def image_id(archive_path: Path) -> str:
    """The digest of the image's configuration, which a node reports as imageID."""
    return str(_read(archive_path)[0]["config"]["digest"])


def _nothing() -> tuple[Json, Json]:
    machine = platform.machine()
    config = {
        "architecture": ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    return {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "layers": []}, config


def _read(archive_path: Path) -> tuple[Json, Json]:
    with tarfile.open(archive_path) as archive:
        index = _member(archive, "index.json")
        manifest = _member(archive, _blob_path(index["manifests"][0]["digest"]))
        return manifest, _member(archive, _blob_path(manifest["config"]["digest"]))


def _member(archive: tarfile.TarFile, name: str) -> Json:
    handle = archive.extractfile(name)
    if handle is None:
        raise ValueError(f"{name} in the image archive is not a file")
    content: Json = json.load(handle)
    return content


def _copy(source: Path, names: Iterable[str], target: tarfile.TarFile) -> None:
    with tarfile.open(source) as archive:
        for name in names:
            target.addfile(archive.getmember(name), archive.extractfile(name))


def _add_json(archive: tarfile.TarFile, content: Json, media_type: str) -> Json:
    data = _encode(content)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    _add(archive, _blob_path(digest), data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    archive.addfile(entry, io.BytesIO(data))


def _encode(content: Json) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _blob_path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")
