"""Writes the files that this repository adds to its image: the package, its command, and the runtime archive.

`python3 runtime/image_layer.py DESTINATION` writes the tree for `/` of the image. The Containerfile and the test bed
both use it, so that they cannot differ. It needs only the standard library.
"""

import compileall
import py_compile
import shutil
import sys
import tomllib
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = (REPOSITORY / "operator" / "qwen_operator", REPOSITORY / "runtime" / "qwen_runtime")
ENGINES = REPOSITORY / "operator" / "qwen_operator" / "engines"
HOME = "opt/qwen-operator"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time that a zip file can hold

COMMAND = """\
#!/opt/qwen-operator/venv/bin/python3
import sys

from qwen_operator.cli import main

sys.exit(main())
"""
ARCHIVE_MAIN = """\
import runpy

runpy.run_module("qwen_runtime", run_name="__main__")
"""


# Python imports this module at the start of every process that has the archive in its PYTHONPATH. It hides the
# environment's own module of this name, so it runs that one too.
SITE_CUSTOMIZE = """\
import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

from qwen_runtime import guard

guard.install()
if "QWEN_RUNTIME_STACKS" in os.environ:
    from qwen_runtime import stillness

    stillness.tell_stack()
_archive = __spec__.origin.rpartition("/")[0]
_own = PathFinder.find_spec("sitecustomize", [path for path in sys.path if path != _archive])
if _own is not None and _own.loader is not None:
    _own.loader.exec_module(module_from_spec(_own))
"""


def write_runtime_archive(target: Path) -> None:
    """Writes the runtime as one executable file. The same sources always give the same bytes.

    The log lines of each version of SGLang come from the operator's folder of that version.
    """
    package = REPOSITORY / "runtime" / "qwen_runtime"
    with target.open("wb") as handle:
        handle.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(handle, "w", zipfile.ZIP_DEFLATED) as archive:
            _add(archive, "__main__.py", ARCHIVE_MAIN.encode())
            _add(archive, "sitecustomize.py", SITE_CUSTOMIZE.encode())
            for path in sorted(package.rglob("*.py")):
                _add(archive, path.relative_to(package.parent).as_posix(), path.read_bytes())
            for path in sorted(ENGINES.glob("*/log_lines.json")):
                _add(archive, f"{package.name}/engines/{path.parent.name}.json", path.read_bytes())
    target.chmod(0o755)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)


def write_metadata(folder: Path) -> None:
    """Writes the metadata of an installed wheel, from which `importlib.metadata` reads the version."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    target = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    target.mkdir()
    (target / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def write_tree(root: Path) -> None:
    """Fills the folder `root`, which must not exist yet."""
    library, commands = root / HOME / "lib", root / "usr" / "local" / "bin"
    commands.mkdir(parents=True)
    for package in PACKAGES:
        shutil.copytree(package, library / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    write_metadata(library)
    # The root file system of the pods is read-only. Without this byte code, every start would compile the package.
    compiled = compileall.compile_dir(
        library,
        quiet=1,
        stripdir=str(root),
        prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not compiled:
        raise SystemExit("the package does not compile; see the lines above")
    write_runtime_archive(root / HOME / "qwen-runtime.pyz")
    command = commands / "qwen-operator"
    command.write_text(COMMAND)
    command.chmod(0o755)


if __name__ == "__main__":
    write_tree(Path(sys.argv[1]))
