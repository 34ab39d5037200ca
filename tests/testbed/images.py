"""The images and checkpoints of the test bed: SGLang for the CPU, the operator's own image, tiny models.

`python -m tests.testbed.images [engine|operator|models]` builds what is missing and prints the paths.
The first build needs the programs HOST_PROGRAMS, and the Python and Debian package indexes.
"""

import argparse
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.testbed import base_image, oci
from tests.testbed.buildah import buildah
from tests.testbed.cache import cached, run_step
from tests.testbed.engine_image import recipe

HOST_PROGRAMS = ("mmdebstrap", "buildah", "gcc", "nm", "readelf", "setpriv", "unshare")

ENGINE_IMAGE = recipe.NAME
ENGINE_REPOSITORY, ENGINE_VERSION = recipe.REPOSITORY, recipe.VERSION

REPOSITORY = Path(__file__).resolve().parents[2]
CONTAINERFILE = REPOSITORY / "runtime" / "Containerfile"
LOCK = REPOSITORY / "runtime" / "requirements.lock"
LAYER_MAKER = REPOSITORY / "runtime" / "image_layer.py"
MODEL_MAKER = Path(__file__).parent / "model" / "make_models.py"
OPERATOR_ARCHIVES_KEPT = 3


def operator_image() -> str:
    """Reference of the operator's image, with the version of pyproject.toml."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return f"localhost/{project['name']}:{project['version']}"


def engine_archive() -> Path:
    """OCI archive of the unmodified SGLang for the CPU, named ENGINE_IMAGE."""
    inputs = [*_contents(_tree(recipe.SOURCES)), *base_image.INPUTS]
    return cached("image-engine", inputs, recipe.build) / "image.tar"


def operator_archive() -> Path:
    """OCI archive of the operator's image, named `operator_image()`. After a change of the code it takes seconds."""
    dependencies = _dependencies_archive()
    sources = [*_tree(REPOSITORY / "operator"), *_tree(REPOSITORY / "runtime"), REPOSITORY / "pyproject.toml"]

    def build(folder: Path) -> None:
        run_step("layer of the operator's image", [sys.executable, LAYER_MAKER, folder / "layer"])
        oci.tar_tree(folder / "layer", folder / "layer.tar")
        oci.write_image(folder / "image.tar", operator_image(), folder / "layer.tar", base=dependencies)
        (folder / "layer.tar").unlink()
        shutil.rmtree(folder / "layer")

    inputs = [str(dependencies).encode(), *_contents([*sources, Path(oci.__file__)])]
    folder = cached("image-operator", inputs, build)
    _keep_newest(folder.parent, OPERATOR_ARCHIVES_KEPT)
    return folder / "image.tar"


def models() -> Path:
    """Folder with one folder for each checkpoint of model/make_models.py. Owned by root."""
    return cached("models", _contents([MODEL_MAKER, recipe.REQUIREMENTS]), _build_models)


def _build_models(folder: Path) -> None:
    archive = engine_archive()
    with buildah("models") as tool:
        tool.step("models 1/2: engine image", "from", "--name", "maker", f"oci-archive:{archive}")
        mounts = [f"--volume={folder}:/models", f"--volume={MODEL_MAKER.parent}:/maker:ro"]
        settings = ["--user=0", "--env=HOME=/tmp", "--env=OMP_NUM_THREADS=1"]
        command = ["python3", f"/maker/{MODEL_MAKER.name}", "/models"]
        tool.step("models 2/2: weights and tokenizers", "run", *mounts, *settings, "maker", "--", *command)


def _dependencies_archive() -> Path:
    """The stage `dependencies` of the Containerfile: everything except this repository's own code."""

    def build(folder: Path) -> None:
        base = base_image.operator_base_archive()
        with buildah("image-dependencies") as tool:
            options = ["--target=dependencies", f"--build-arg=BASE=oci-archive:{base}", *tool.pip_volume()]
            source = ["--file", str(CONTAINERFILE), "--tag=dependencies", str(REPOSITORY)]
            tool.step("operator image 1/2: dependencies", "bud", *options, *source)
            target = f"oci-archive:{folder / 'image.tar'}:dependencies"
            tool.step("operator image 2/2: archive", "push", "dependencies", target)

    return (
        cached("image-dependencies", [*_contents([LOCK, CONTAINERFILE]), *base_image.OPERATOR_INPUTS], build)
        / "image.tar"
    )


def _tree(folder: Path) -> list[Path]:
    """The files below `folder` in order, without byte code."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _contents(paths: Iterable[Path]) -> list[bytes]:
    """Names and contents, so that a renamed file changes the inputs."""
    return [part for path in paths for part in (str(path.relative_to(REPOSITORY)).encode(), path.read_bytes())]


def _keep_newest(folder: Path, count: int) -> None:
    """Removes the least recently used archives. Every change of the code makes another one of about half a GB."""
    by_age = sorted(folder.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in by_age[count:]:
        shutil.rmtree(old, ignore_errors=True)


PARTS: dict[str, Callable[[], Path]] = {"engine": engine_archive, "operator": operator_archive, "models": models}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.testbed.images", description=__doc__)
    parser.add_argument("part", nargs="*", help=f"one of {', '.join(PARTS)}; default: all")
    names = parser.parse_args().part or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    for name in names:
        print(PARTS[name](), flush=True)


if __name__ == "__main__":
    main()
