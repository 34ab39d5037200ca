"""The SBOM, the pins, and the release workflow."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import oci_files, pins, sbom

ROOT = Path(__file__).parents[3]
WORKFLOW = ROOT / ".github/workflows/release.yaml"
VENV = "opt/qwen-operator/venv/lib/python3.11/site-packages"
DPKG = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9

Package: gone
Status: deinstall ok config-files
Version: 1
"""


def metadata(name: str, version: str) -> str:
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nText\n"


def layer(files: dict[str, str], *, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return gzip.compress(buffer.getvalue()) if zipped else buffer.getvalue()


def image(path: Path, *layers: dict[str, str]) -> Path:
    """An OCI archive with these layers."""
    blobs: dict[str, bytes] = {}

    def blob(content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return f"sha256:{digest}"

    forms = {False: "application/vnd.oci.image.layer.v1.tar", True: "application/vnd.oci.image.layer.v1.tar+gzip"}
    parts = [(bool(number % 2), files) for number, files in enumerate(layers)]
    manifest = {
        "layers": [{"mediaType": forms[zipped], "digest": blob(layer(files, zipped=zipped))} for zipped, files in parts]
    }
    index = {"manifests": [{"digest": blob(json.dumps(manifest).encode())}]}
    with tarfile.open(path, "w") as tar:
        for name, content in {**blobs, "index.json": json.dumps(index).encode()}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


BASE = {
    "var/lib/dpkg/status": DPKG,
    "usr/lib/os-release": 'ID=debian\nVERSION_ID="12"\n',
    f"{VENV}/old-1.0.dist-info/METADATA": metadata("old", "1.0"),
    f"{VENV}/kopf-1.45.2.dist-info/METADATA": metadata("kopf", "1.45.2"),
}


def test_the_sbom_lists_what_is_in_the_image(tmp_path: Path) -> None:
    top = {
        f"{VENV}/.wh.old-1.0.dist-info": "",
        "./opt/qwen-operator/lib/qwen_operator-0.1.0.dist-info/METADATA": metadata("qwen_operator", "0.1.0"),
    }
    archive = image(tmp_path / "image.tar", BASE, top)
    packages = sorted(sbom.of_image(archive))
    record = json.loads(sbom.document(packages, oci_files.digest(archive)))

    assert [one["purl"] for one in record["components"]] == [
        "pkg:pypi/kopf@1.45.2",
        "pkg:deb/debian/libc6@2.36-9?arch=amd64",
        "pkg:pypi/qwen-operator@0.1.0",
    ]
    assert record["bomFormat"] == "CycloneDX"
    assert record["metadata"]["component"]["version"].startswith("sha256:")
    assert sbom.document(packages, "d") == sbom.document(packages, "d")


def test_a_package_beside_the_lock_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = image(tmp_path / "image.tar", BASE)
    monkeypatch.setattr("sys.argv", ["sbom", "--check", str(archive)])
    assert sbom.main() == 1
    assert "old 1.0 is in the image" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["sbom", str(tmp_path / "none.tar")])
    assert sbom.main() == 1


def test_an_archive_of_any_form_is_one_error(tmp_path: Path) -> None:
    broken = tmp_path / "x.tar"
    for content in (
        b"",
        b"no tar",
        layer({"index.json": "[]"}, zipped=False),
        layer({"index.json": "{}"}, zipped=False),
    ):
        broken.write_bytes(content)
        with pytest.raises(oci_files.ImageError):
            oci_files.files(broken, lambda _path: True)


def test_without_an_image_the_lock_is_listed() -> None:
    packages = list(sbom.of_lock(sbom.LOCK.read_text()))
    assert {"kopf", "smg", "aiohttp"} <= {one.name for one in packages}
    assert not sbom.beside(packages, packages)


def test_what_is_pinned_by_content_is_not_named() -> None:
    digest = "@sha256:" + "0" * 64
    values = {"engine": {"image": f"lmsysorg/sglang{digest}"}}
    assert not list(pins.unpinned_images(f"ARG BASE=python:3.11{digest}\nFROM ${{BASE}} AS one\nFROM one\n", values))
    lines = list(pins.unpinned_images("ARG BASE=python:3.11\nFROM ${BASE}\nFROM nginx:1\n", {"engine": {"image": "s"}}))
    assert len(lines) == 3
    workflow = (
        "jobs: {a: {steps: [{uses: actions/checkout@v4}, {uses: ./here}, {run: x}, {uses: 'a/b@" + "0" * 40 + "'}]}}"
    )
    assert list(pins.unpinned_actions("w", workflow)) == ["w: actions/checkout@v4: it must end with @ and the commit"]


def workflow() -> dict[str, Any]:
    return yaml.safe_load(WORKFLOW.read_text())  # type: ignore[no-any-return]


def test_every_action_is_pinned_by_commit_and_names_its_version() -> None:
    text = WORKFLOW.read_text()
    assert not list(pins.unpinned_actions(WORKFLOW.name, text))
    assert all(" # v" in line for line in text.splitlines() if "uses:" in line)


def test_only_a_pushed_tag_gets_rights_to_publish() -> None:
    """A dry run needs no secret, and a pull request cannot publish."""
    jobs = workflow()["jobs"]
    assert workflow()["permissions"] == {"contents": "read"}
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert "github.ref_type == 'tag'" in jobs["publish"]["if"]
    assert "secrets." not in WORKFLOW.read_text()


def test_no_script_of_the_workflow_takes_text_of_an_event() -> None:
    """A name of a branch with shell characters would run in the script: values go through the environment."""
    for job in workflow()["jobs"].values():
        for step in job["steps"]:
            assert "${{" not in step.get("run", ""), step
