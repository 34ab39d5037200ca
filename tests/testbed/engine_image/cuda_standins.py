"""Makes the CUDA libraries that a CUDA build of torch must find before it can run on a CPU.

The only torch on the Python package index is linked against CUDA libraries of several GB. On a CPU they only have to
exist and to define the symbols that torch names, so each becomes a file of a few KB whose functions return an error.
Runs on the machine that builds the image; needs gcc and binutils.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CUDA_LIBRARY = re.compile(r"lib(cu|nccl|nvrtc|nvshmem|nvJit|nvtx)")
NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")
# First match wins: cublasLt before cublas, cusparseLt before cusparse, cuda last.
LIBRARY_OF_PREFIX = (
    ("cudnn", "libcudnn"),
    ("nccl", "libnccl"),
    ("nvrtc", "libnvrtc"),
    ("nvshmem", "libnvshmem_host"),
    ("cufile", "libcufile"),
    ("cuFile", "libcufile"),
    ("cupti", "libcupti"),
    ("cublasLt", "libcublasLt"),
    ("cublas", "libcublas"),
    ("cusparseLt", "libcusparseLt"),
    ("cusparse", "libcusparse"),
    ("cufft", "libcufft"),
    ("curand", "libcurand"),
    ("cusolver", "libcusolver"),
    ("cuda", "libcudart"),
    ("__cuda", "libcudart"),
    ("nvtx", "libnvtx"),
)
NO_DEVICE = 100  # cudaErrorNoDevice
ERROR = 1


@dataclass(frozen=True, slots=True)
class Symbol:
    """One symbol of a shared library; `version` is empty when it carries none."""

    name: str
    version: str
    defined: bool


def symbols(nm_output: str) -> Iterator[Symbol]:
    """The dynamic symbols that `nm -D` printed."""
    for line in nm_output.splitlines():
        *_, kind, text = line.split()
        name, _, version = text.partition("@")
        yield Symbol(name, version.lstrip("@"), kind not in {"U", "w", "v"})


def library_of(symbol: str, libraries: Iterable[str]) -> str | None:
    """The library among `libraries` (file names) that should define `symbol`; None when it is not CUDA's."""
    for prefix, stem in LIBRARY_OF_PREFIX:
        if symbol.startswith(prefix):
            return next((name for name in libraries if name.split(".so")[0] == stem), None)
    return None


def source(library: str, names: Sequence[str]) -> str:
    """C text that defines every name as a function that reports an error."""
    code = NO_DEVICE if library.startswith("libcudart") else ERROR
    functions = [f"int {name}(void) {{ return {code}; }}" for name in names]
    return "\n".join(functions or ["int standin;"]) + "\n"


def version_script(wanted: Iterable[Symbol]) -> str:
    """Linker script with one node for each symbol version; empty when no symbol has one."""
    nodes: dict[str, list[str]] = {}
    for symbol in wanted:
        if symbol.version:
            nodes.setdefault(symbol.version, []).append(symbol.name)
    return "".join(f"{version} {{ global: {'; '.join(sorted(names))}; }};\n" for version, names in nodes.items())


def output_of(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def compile_library(folder: Path, library: str, wanted: Sequence[Symbol]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        code, script = Path(temporary, "standin.c"), Path(temporary, "versions.map")
        code.write_text(source(library, sorted({symbol.name for symbol in wanted})))
        script.write_text(version_script(wanted))
        linker = [f"-Wl,-soname,{library}"]
        if script.stat().st_size:
            linker.append(f"-Wl,--version-script={script}")
        flags = ["-w", "-O0", "-fno-builtin", "-nostdlib", "-shared", "-fPIC", *linker]
        subprocess.run(["gcc", *flags, "-o", folder / library, code], check=True)


def make(folder: Path) -> list[str]:
    """Writes every missing CUDA library into `folder` (torch/lib, where torch looks first); returns their names."""
    present = sorted(folder.glob("*.so*"))
    every = [symbol for path in present for symbol in symbols(output_of("nm", "-D", path))]
    needed = {name for path in present for name in NEEDED.findall(output_of("readelf", "-dW", path))}
    missing = sorted(name for name in needed if CUDA_LIBRARY.match(name) and not (folder / name).exists())
    own = {symbol.name for symbol in every if symbol.defined}
    wanted: dict[str, set[Symbol]] = {name: set() for name in missing}
    for symbol in every:
        library = library_of(symbol.name, missing)
        if library and not symbol.defined and symbol.name not in own and not symbol.name.startswith("_Z"):
            wanted[library].add(symbol)
    for library, group in wanted.items():
        compile_library(folder, library, sorted(group, key=lambda symbol: (symbol.version, symbol.name)))
    return missing


if __name__ == "__main__":
    for made in make(Path(sys.argv[1])):
        print(made)
