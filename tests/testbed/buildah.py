"""buildah with its own storage, so that a build neither uses nor leaves images on the machine."""

import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.cache import cache_dir, locked, run_step

PIP_SETTINGS = ("INDEX_URL", "EXTRA_INDEX_URL", "TRUSTED_HOST", "DEFAULT_TIMEOUT", "RETRIES", "PROXY")
# pip also reads its settings here. It is a mount, so that no address and no certificate gets into the image.
PIP_MOUNT = "/etc/xdg/pip"
CA_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
# This driver does not copy a layer's files. Only vfs needs no kernel support, and it copies them for each layer.
STORAGE_DRIVER = "overlay"
# With these, a command's mounts and processes always end with it. If a mount of /sys stayed inside a folder of the
# cache, the next removal of that folder would delete through it.
PRIVATE = ("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child")


@dataclass(frozen=True, slots=True)
class Buildah:
    """Commands on one storage. `log` names the file for their output."""

    work: Path
    log: str

    def step(self, label: str, *argv: str | Path) -> None:
        """Runs a command with progress. Raises StepFailed."""
        run_step(label, [*PRIVATE, *self._argv(argv)], env=self._env(), log=self.log)

    def step_with_root(self, label: str, container: str, script: str) -> None:
        """Runs a shell script on this machine with the files of a working container below `$root`."""
        mount = shlex.join(self._argv(["mount", container]))
        run_step(label, [*PRIVATE, "sh", "-ec", f"root=$({mount})\n{script}"], env=self._env(), log=self.log)

    def pip_volume(self) -> list[str]:
        """Options that give pip inside a container this machine's index and certificates."""
        return ["--volume", f"{self.work / 'pip'}:{PIP_MOUNT}:ro"]

    def _argv(self, argv: Sequence[str | Path]) -> list[str]:
        return ["buildah", "--root", f"{self.work}/root", "--runroot", f"{self.work}/run", *map(str, argv)]

    def _env(self) -> dict[str, str]:
        driver = os.environ.get("STORAGE_DRIVER", STORAGE_DRIVER)
        return {"STORAGE_DRIVER": driver, "BUILDAH_ISOLATION": "chroot", "TMPDIR": f"{self.work}/tmp"}


@contextmanager
def buildah(log: str) -> Iterator[Buildah]:
    """A Buildah with empty storage. The storage is removed afterwards, also if an earlier build was killed."""
    work = cache_dir() / "work" / "buildah"
    with locked("buildah"):
        _remove(work)
        (work / "tmp").mkdir(parents=True)
        _write_pip_settings(work / "pip")
        try:
            yield Buildah(work, log)
        finally:
            _remove(work)


def _write_pip_settings(folder: Path) -> None:
    folder.mkdir()
    bundle = next((os.environ[name] for name in CA_VARIABLES if os.environ.get(name)), CA_BUNDLE)
    shutil.copyfile(bundle, folder / "ca.crt")
    lines = ["[global]", f"cert = {PIP_MOUNT}/ca.crt"]
    for name in PIP_SETTINGS:
        if value := os.environ.get(f"PIP_{name}"):
            lines.append(f"{name.lower().replace('_', '-')} = {value}")
    (folder / "pip.conf").write_text("\n".join(lines) + "\n")


def _remove(work: Path) -> None:
    if work.exists():
        shutil.rmtree(work)
