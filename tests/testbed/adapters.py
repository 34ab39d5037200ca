"""LoRA adapters of the test bed's tiny models, made by the real PEFT, and a stand-in for the CPU."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.testbed import images
from tests.testbed.buildah import buildah
from tests.testbed.cache import cached

MAKER = Path(__file__).parent / "adapter_maker"
STANDINS = "standins"
"""The folder beside the adapters that an engine on a CPU needs on its PYTHONPATH."""


def adapters() -> Path:
    """Folder with one folder for each adapter of make_adapters.py, readable for everyone."""
    models = images.models()
    sources = sorted(path for path in MAKER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    inputs = [str(models).encode(), *(part for path in sources for part in (path.name.encode(), path.read_bytes()))]
    return cached("adapters", inputs, lambda folder: _build(folder, models))


def _build(folder: Path, models: Path) -> None:
    packages = folder / "packages"
    uv = str(Path(sys.executable).with_name("uv"))
    install = [uv, "pip", "install", "--quiet", "--require-hashes", "--no-deps", "--target", str(packages)]
    subprocess.run([*install, "-r", str(MAKER / "requirements.txt")], check=True)
    with buildah("adapters") as tool:
        tool.step("adapters 1/2: engine image", "from", "--name", "maker", f"oci-archive:{images.engine_archive()}")
        mounts = [f"--volume={models}:/models:ro", f"--volume={folder}:/out", f"--volume={MAKER}:/maker:ro"]
        settings = [
            "--user=0",
            "--env=HOME=/tmp",
            "--env=OMP_NUM_THREADS=1",
            "--env=PYTHONPATH=/opt/standins:/out/packages",
        ]
        command = ["python3", "/maker/make_adapters.py", "/models", "/out"]
        tool.step("adapters 2/2: PEFT", "run", *mounts, *settings, "maker", "--", *command)
    shutil.rmtree(packages)
    shutil.copytree(MAKER / STANDINS, folder / STANDINS, ignore=shutil.ignore_patterns("__pycache__"))


if __name__ == "__main__":
    print(adapters())
