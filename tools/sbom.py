"""Writes the SBOM of the image as CycloneDX JSON: `python -m tools.sbom IMAGE.tar > image.cdx.json`.

It lists what is in the image, not what should be: the Python packages that are installed there, and the Debian packages
of its base. The same image always gives the same bytes. Without an archive it lists the packages of
runtime/requirements.lock. `--check` also fails if a Python package of the image is not in the lock.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from tools import oci_files

LOCK = Path(__file__).resolve().parents[1] / "runtime" / "requirements.lock"
OWN = "qwen-operator"
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
_DPKG = "var/lib/dpkg/status"
_RELEASE = "usr/lib/os-release"
_PYTHON = re.compile(r"(opt/qwen-operator/(venv/)?lib/|usr/).*\.dist-info/METADATA")
# Those that Debian's python3-venv brings into each virtual environment.
_OF_THE_VENV = ("pip", "setuptools", "wheel")
_NAMESPACE = uuid.UUID("6d0e0b5e-52a1-4f0b-8a55-0d0b6c9f6a11")


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One package. `kind` is that of its package URL: pypi or deb."""

    kind: str
    name: str
    version: str
    path: str = ""
    distribution: str = ""
    architecture: str = ""

    def component(self) -> Component:
        """The package as CycloneDX writes it."""
        qualifiers = {"arch": self.architecture} if self.architecture else None
        url = PackageURL(self.kind, self.distribution or None, self.name, self.version, qualifiers)
        return Component(
            name=self.name, version=self.version, type=ComponentType.LIBRARY, purl=url, bom_ref=url.to_string()
        )


def main() -> int:
    """Write the SBOM to standard output. Exit code 1: the image cannot be read, or has a package beside the lock."""
    parser = argparse.ArgumentParser(prog="python -m tools.sbom", description=str(__doc__).partition("\n")[0])
    parser.add_argument("archive", nargs="?", type=Path, help="the image; default: only what the lock file names")
    parser.add_argument("--check", action="store_true", help="fail if a Python package of the image is not in the lock")
    arguments = parser.parse_args()
    locked = sorted(of_lock(LOCK.read_text()))
    try:
        packages = sorted(of_image(arguments.archive)) if arguments.archive else locked
        name = oci_files.digest(arguments.archive) if arguments.archive else "lock"
    except oci_files.ImageError as error:
        sys.stderr.write(f"tools.sbom: {error}\n")
        return 1
    sys.stdout.write(document(packages, name))
    strays = beside(packages, locked) if arguments.check else []
    for one in strays:
        sys.stderr.write(f"tools.sbom: {one.name} {one.version} is in the image, but not in {LOCK.name}\n")
    return 1 if strays else 0


def document(packages: Iterable[Package], digest: str) -> str:
    """The SBOM. `digest` is that of the image, and decides the serial number."""
    root = Component(name=OWN, version=digest, type=ComponentType.CONTAINER, bom_ref=OWN)
    components = [one.component() for one in packages]
    bom = Bom(components=components, serial_number=uuid.uuid5(_NAMESPACE, digest))
    bom.metadata.component = root
    bom.register_dependency(root, components)
    record = json.loads(JsonV1Dot6(bom).output_as_string())
    # The time of writing is no property of the image.
    del record["metadata"]["timestamp"]
    return json.dumps(record, indent=2) + "\n"


def of_lock(text: str) -> Iterator[Package]:
    """The packages that a lock file pins."""
    for name, version in _PINNED.findall(text):
        yield Package("pypi", _normal(name), version)


def of_image(archive: Path) -> Iterator[Package]:
    """The packages in an image. Raises oci_files.ImageError."""
    found = oci_files.files(archive, lambda path: path in (_DPKG, _RELEASE) or bool(_PYTHON.fullmatch(path)))
    distribution = _distribution(found.get(_RELEASE, b"").decode("utf-8", "replace"))
    for path, content in found.items():
        if path.endswith("METADATA"):
            header = BytesHeaderParser().parsebytes(content)
            yield Package("pypi", _normal(str(header["Name"])), str(header["Version"]), path)
    for paragraph in found.get(_DPKG, b"").decode("utf-8", "replace").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"[A-Z][\w-]*: ", line))
        if fields.get("Status") == "install ok installed":
            yield Package("deb", fields["Package"], fields["Version"], "", distribution, fields.get("Architecture", ""))


def beside(packages: Iterable[Package], locked: Iterable[Package]) -> list[Package]:
    """The Python packages of our virtual environment that the lock does not pin at this version."""
    pinned = {(one.name, one.version) for one in locked}
    return [
        one
        for one in packages
        if one.path.startswith("opt/qwen-operator/venv/")
        and one.name not in _OF_THE_VENV
        and (one.name, one.version) not in pinned
    ]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _distribution(release: str) -> str:
    match = re.search(r'^ID="?([a-z]+)', release, re.MULTILINE)
    return match[1] if match else "debian"


if __name__ == "__main__":
    sys.exit(main())
