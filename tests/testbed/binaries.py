"""The cluster's programs, built from pinned Go modules (go.mod and go.sum under modules/) into the cache."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.testbed.cache import StepFailed, cached, is_cached, run_step

MODULES = Path(__file__).parent / "modules"
KUBERNETES_VERSION = "v1.36.3"
PAUSE_IMAGE = "localhost/qwen-testbed/pause:1"
KWOK_STAGES = (
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-complete.yaml",
    "pod/fast/pod-delete.yaml",
)


@dataclass(frozen=True, slots=True)
class Part:
    """One module of modules/, built by one `go build`: one package, or `tool` for all tools in its go.mod."""

    name: str
    package: str
    linker: str = "-s -w"

    def argv(self, output: Path) -> list[str]:
        # One package gets this part's name. Several go into a folder under their own names.
        target = f"{output}/" if self.package == "tool" else str(output / self.name)
        return ["go", "build", "-trimpath", "-ldflags", self.linker, "-o", target, self.package]

    def inputs(self, go_version: str) -> Iterator[bytes]:
        """Everything that decides what is built."""
        yield from (go_version.encode(), *(word.encode() for word in self.argv(Path("/out"))))
        for name in ("go.mod", "go.sum", "main.go"):
            file = MODULES / self.name / name
            yield file.read_bytes() if file.exists() else b""
        yield json.dumps(KWOK_STAGES if self.name == "kwok" else []).encode()


def _kubernetes_linker() -> str:
    # Without these the server reports version v0.0.0, and the version checks of kubectl and Helm fail.
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    values = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor}
    homes = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(["-s -w", *(f"-X {home}.{name}={value}" for home in homes for name, value in values.items())])


PARTS = (
    Part("pause", "."),
    Part("etcd", "go.etcd.io/etcd/server/v3"),
    Part("kubernetes", "tool", _kubernetes_linker()),
    Part("containerd", "tool"),
    Part("kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    Part("coredns", "."),
    Part("kube-router", "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"),
    Part("helm", "helm.sh/helm/v4/cmd/helm"),
)


def ensure_binaries() -> dict[str, Path]:
    """Part name -> its finished folder. Builds what is missing. Raises StepFailed with the compiler's output."""
    version = _go_version()
    wanted = [part for part in PARTS if not is_cached(part.name, part.inputs(version))]
    folders = {}
    for part in PARTS:
        number = wanted.index(part) + 1 if part in wanted else 0
        label = f"building {part.name} ({number} of {len(wanted)})" if number else f"building {part.name}"
        folders[part.name] = cached(part.name, part.inputs(version), partial(_build, part, label))
    return folders


def _go_version() -> str:
    if shutil.which("go") is None:
        raise StepFailed("the program go (1.26 or newer) is not on PATH; the test bed builds Kubernetes with it")
    return subprocess.run(["go", "version"], check=True, capture_output=True, text=True).stdout.strip()


def _build(part: Part, label: str, output: Path) -> None:
    run_step(label, part.argv(output), env={"CGO_ENABLED": "0"}, cwd=MODULES / part.name, log=f"build-{part.name}")
    if part.name == "kwok":
        _copy_stages(output)
    if part.name == "pause":
        write_image(output / "pause.tar", PAUSE_IMAGE, output / "pause")


def _copy_stages(output: Path) -> None:
    """The kwok binary does not contain its stages. Its module has them as files."""
    argv = ["go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok"]
    module = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=MODULES / "kwok").stdout.strip()
    documents = [(Path(module) / "kustomize/stage" / name).read_text() for name in KWOK_STAGES]
    (output / "stages.yaml").write_text("\n---\n".join(documents))


def write_image(archive: Path, reference: str, program: Path) -> None:
    """Writes a container image (Docker archive) that contains one static program and runs it."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo(program.name)
        entry.size, entry.mode = program.stat().st_size, 0o755
        with program.open("rb") as source:
            tar.addfile(entry, source)
    config = {
        "architecture": subprocess.check_output(["go", "env", "GOARCH"], text=True).strip(),
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]
    files = {
        "layer.tar": layer.getvalue(),
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    with tarfile.open(archive, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def place(source: Path, target: Path) -> None:
    """Puts a program at a path of the state folder, as a hard link or as a copy."""
    if target.exists() and (target.samefile(source) or target.stat().st_size == source.stat().st_size):
        return
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        unfinished = target.with_name(f"{target.name}.copying")
        shutil.copy2(source, unfinished)
        unfinished.rename(target)
