"""buildah with storage of its own, so that a build neither sees nor leaves an image on the machine."""

import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.cache import cache_dir, locked, run_step

PIP_SETTINGS = ("INDEX_URL", "EXTRA_INDEX_URL", "TRUSTED_HOST", "DEFAULT_TIMEOUT", "RETRIES", "PROXY")
# pip reads its settings here too; a mount, so that neither an address nor a certificate gets into the image.
PIP_MOUNT = "/etc/xdg/pip"
CA_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
# Copies nothing per layer, unlike vfs, the one driver that needs no kernel support.
STORAGE_DRIVER = "overlay"
# A command's mounts and processes end with it, however it ends. Left on the machine, a mount of /sys inside a folder
# of the cache would be walked into by the next removal of that folder.
PRIVATE = ("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child")


@dataclass(frozen=True, slots=True)
class Buildah:
    """Commands on one storage; `log` names the file that gets their output."""

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
    """A Buildah whose storage is gone afterwards, and whatever a build that was killed left behind before."""
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
