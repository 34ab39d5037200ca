"""The base images of all others: a small Debian with Python, and the same with nginx for the operator's image."""

from pathlib import Path

from tests.testbed import oci
from tests.testbed.buildah import PRIVATE
from tests.testbed.cache import cached, run_step
from tests.testbed.packages import PROXY

NAME = "localhost/qwen-operator-base:1"
SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "python3-pip", "ca-certificates", "libgomp1", "libnuma1")
OPERATOR_PACKAGES = (*PACKAGES, *PROXY.values())
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
INPUTS = tuple(text.encode() for text in (SUITE, *PACKAGES, *LEFT_OUT))
"""Everything that decides the content, except the versions of the packages, which are the newest at build time."""
OPERATOR_INPUTS = tuple(text.encode() for text in (SUITE, *OPERATOR_PACKAGES, *LEFT_OUT))
"""The same for the operator's base."""


def base_archive() -> Path:
    """OCI archive of the base image."""
    return cached("image-base", INPUTS, lambda folder: _build(folder, PACKAGES)) / "image.tar"


def operator_base_archive() -> Path:
    """OCI archive of the base of the operator's image, which has what the Containerfile would install."""
    return (
        cached("image-operator-base", OPERATOR_INPUTS, lambda folder: _build(folder, OPERATOR_PACKAGES)) / "image.tar"
    )


def _build(folder: Path, names: tuple[str, ...]) -> None:
    layer = folder / "rootfs.tar"
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    packages = f"--include={','.join(names)}"
    run_step(
        "base image",
        [*PRIVATE, "mmdebstrap", "--variant=minbase", packages, *options, SUITE, layer],
        env={"TMPDIR": str(folder)},
        log=folder.parent.name,
    )
    oci.write_image(folder / "image.tar", NAME, layer)
    layer.unlink()
