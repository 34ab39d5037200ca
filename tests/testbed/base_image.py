"""The base image of all others: a small Debian with Python."""

from pathlib import Path

from tests.testbed import oci
from tests.testbed.buildah import PRIVATE
from tests.testbed.cache import cached, run_step

NAME = "localhost/qwen-operator-base:1"
SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "python3-pip", "ca-certificates", "libgomp1", "libnuma1")
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
INPUTS = tuple(text.encode() for text in (SUITE, *PACKAGES, *LEFT_OUT))
"""Everything that decides the content, except the versions of the packages, which are the newest at build time."""


def base_archive() -> Path:
    """OCI archive of the base image."""
    return cached("image-base", INPUTS, _build) / "image.tar"


def _build(folder: Path) -> None:
    layer = folder / "rootfs.tar"
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    packages = f"--include={','.join(PACKAGES)}"
    run_step(
        "base image",
        [*PRIVATE, "mmdebstrap", "--variant=minbase", packages, *options, SUITE, layer],
        env={"TMPDIR": str(folder)},
        log="image-base",
    )
    oci.write_image(folder / "image.tar", NAME, layer)
    layer.unlink()
