"""Builds the engine image: the unmodified SGLang from the Python package index, made to run on a CPU.

Beside it are what it takes: the pinned packages, stand-ins for two GPU packages, and the maker of CUDA stand-ins.
"""

import shlex
import sys
from pathlib import Path

from tests.testbed.base_image import base_archive
from tests.testbed.buildah import Buildah, buildah

VERSION = "0.5.23"
REPOSITORY = "localhost/sglang-cpu"
NAME = f"{REPOSITORY}:v{VERSION}"

SOURCES = Path(__file__).parent
REQUIREMENTS = SOURCES / "requirements.txt"
HOME = "/opt/sglang"
STANDINS = "/opt/standins"
PYTHON = f"{HOME}/bin/python3"
# SGLang's Python is the image's `python3`, as in the upstream image. Settings for the CPU are not in here: they are
# the chart's to give, as any setting of an engine is.
SETTINGS = {
    "PATH": f"{HOME}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": STANDINS,
}
USER = "65532:65532"


def build(folder: Path) -> None:
    """Writes `folder`/image.tar, an OCI archive of NAME."""
    base = base_archive()
    with buildah("image-engine") as tool:
        tool.step("engine image 1/7: base", "from", "--name", "engine", f"oci-archive:{base}")
        _install(tool)
        settings = [f"--env={name}={value}" for name, value in SETTINGS.items()]
        tool.step("engine image 6/7: settings", "config", *settings, "--user", USER, "engine")
        target = f"oci-archive:{folder / 'image.tar'}:{NAME}"
        # Compressed layers take as long to import, and longer to write.
        tool.step("engine image 7/7: archive", "commit", "--disable-compression", "engine", target)


def _install(tool: Buildah) -> None:
    run = ["run", *tool.pip_volume(), f"--volume={SOURCES}:/mnt:ro", "engine", "--"]
    tool.step("engine image 2/7: virtual environment", *run, "python3", "-m", "venv", HOME)
    pip = [PYTHON, "-m", "pip", "install", "--no-deps", "--no-compile", "--no-cache-dir", "--progress-bar=off"]
    tool.step("engine image 3/7: SGLang and torch", *run, *pip, "-r", f"/mnt/{REQUIREMENTS.name}")
    tool.step("engine image 4/7: GPU stand-ins", "copy", "--quiet", "engine", SOURCES / "standins", STANDINS)
    maker = shlex.join([sys.executable, str(SOURCES / "cuda_standins.py")])
    libraries = f'"$root"{HOME}/lib/python3.*/site-packages/torch/lib'
    tool.step_with_root("engine image 4/7: CUDA stand-ins", "engine", f"{maker} {libraries}")
    # The root file system of a pod is read-only: what is not compiled now would be compiled at every start.
    # One file of torch is in the language of Python 3.12.
    compiled = [PYTHON, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    tool.step("engine image 5/7: byte code", *run, *compiled, "-x", "py312_intrinsics", f"{HOME}/lib", STANDINS)
