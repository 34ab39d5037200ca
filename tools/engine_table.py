"""Writes the tables of an SGLang version from its package, and lists what else must be checked.

    make engine-table VERSION=0.5.23

It reads the source of the package and never runs it, because importing SGLang needs torch and a GPU. Options are fields
with an annotation `A[type, Arg(...)]` and `parser.add_argument` calls, in `server_args.py` and (since 0.5.15) in
`arg_groups/fields/`.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import ZipFile

from qwen_operator import engines
from qwen_operator.engines.types import EngineVersion
from qwen_runtime.versions import nearest
from tools import engine_models

FOLDER = Path(engines.__file__).parent
# SGLang has wheels only for these. pip downloads a wheel of another platform only if an option names it.
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux2014_x86_64")
PYTHON = "3.11"
_SOURCES = "sglang/srt/"
_FIELDS = f"{_SOURCES}arg_groups/fields/"
_SERVER_ARGS = f"{_SOURCES}server_args.py"
# The names of the files that list the parsers contain this.
_PARSERS = "parser_names"
# The operator never plans engines of this type.
_OTHER_ENGINES = "sglang/multimodal_gen/"

Options = Mapping[str, Sequence[str]]
"""Canonical name -> its other spellings, both sorted."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One option: its spellings, the canonical one first, and whether each also exists as --no-..."""

    names: tuple[str, ...]
    negatable: bool

    def others(self) -> list[str]:
        """Every spelling but the canonical one, sorted."""
        negated = [f"--no-{name.removeprefix('--')}" for name in self.names] if self.negatable else []
        return sorted([*self.names[1:], *negated])


def download(version: str, folder: Path) -> Path:
    """The wheel of a version from the package index. Raises SystemExit if there is none."""
    platforms = [f"--platform={name}" for name in PLATFORMS]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", f"--python-version={PYTHON}", *platforms]
    pip = [sys.executable, "-m", "pip", "download", *options, f"--dest={folder}", f"sglang=={version}"]
    if subprocess.run(pip, check=False).returncode:
        raise SystemExit(f"pip cannot download SGLang {version}; see its message above")
    return next(folder.glob("sglang-*.whl"))


def sources(wheel: Path) -> dict[str, str]:
    """The Python files of a wheel: path -> text."""
    with ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".py") and not name.startswith(_OTHER_ENGINES)]
        return {name: archive.read(name).decode("utf-8") for name in names}


def options(files: Mapping[str, str]) -> Options:
    """The options of `sglang serve`, with hidden and deprecated ones. Raises KeyError if there is no parser."""
    texts = [files[_SERVER_ARGS], *(text for path, text in files.items() if path.startswith(_FIELDS))]
    trees = [ast.parse(text) for text in texts]
    flags = [flag for tree in trees for flag in (*_added(tree), *_declared(tree))]
    return {flag.names[0]: flag.others() for flag in sorted(flags, key=lambda flag: flag.names)}


def _added(tree: ast.Module) -> Iterator[Flag]:
    """Options that SGLang adds to the parser one by one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            names = tuple(name for name in map(_constant, node.args) if name.startswith("--"))
            if names:
                yield Flag(names, _negatable(_keywords(node)))


def _declared(tree: ast.Module) -> Iterator[Flag]:
    """Options that SGLang derives from the fields of a class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            metadata = _metadata(node.annotation)
            if metadata is not None and not _constant(metadata.get("no_cli")):
                derived = f"--{node.target.id.replace('_', '-')}"
                name = _constant(metadata.get("cli_name")) or derived
                yield Flag((name, *_strings(metadata.get("aliases"))), _negatable(metadata))


def _metadata(annotation: ast.expr) -> Mapping[str, ast.expr] | None:
    """The keywords of the Arg in A[type, Arg(...)]; {} for A[type, "help"], None for another annotation."""
    if not isinstance(annotation, ast.Subscript) or not isinstance(annotation.slice, ast.Tuple):
        return None
    if not isinstance(annotation.value, ast.Name) or annotation.value.id != "A":
        return None
    for item in annotation.slice.elts[1:]:
        if isinstance(item, ast.Call) and isinstance(item.func, ast.Name) and item.func.id == "Arg":
            return _keywords(item)
        if isinstance(item, ast.Constant | ast.JoinedStr | ast.BinOp):
            return {}
    return None


def _keywords(call: ast.Call) -> dict[str, ast.expr]:
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def _negatable(keywords: Mapping[str, ast.expr]) -> bool:
    action = keywords.get("action")
    return isinstance(action, ast.Attribute) and action.attr == "BooleanOptionalAction"


def _constant(node: ast.expr | None) -> str:
    """The text of a constant, "" for False, None and no node."""
    return str(node.value) if isinstance(node, ast.Constant) and node.value else ""


def _strings(node: ast.expr | None) -> tuple[str, ...]:
    return tuple(_constant(one) for one in node.elts) if isinstance(node, ast.List) else ()


def render(version: str, table: Options) -> str:
    """The text of an options.json. Each option has its own line, so that a diff shows the changed options."""
    lines = (f"    {json.dumps(name)}: {json.dumps(others)}" for name, others in table.items())
    return f'{{\n  "sglang": {json.dumps(version)},\n  "options": {{\n' + ",\n".join(lines) + "\n  }\n}\n"


def differences(table: Options, engine: EngineVersion) -> list[str]:
    """The options that a version has more and less than a known one."""
    old = set(engine.options.options.values())
    added, removed = sorted(set(table) - old), sorted(old - set(table))
    return [f"options that SGLang {engine.version} lacks: {_list(added)}", f"options that are gone: {_list(removed)}"]


def missing(table: Options, files: Mapping[str, str], engine: EngineVersion) -> list[str]:
    """Names that the operator uses with a known version and that the source of this version lacks."""
    text = "\n".join(files.values())
    parser_text = "\n".join(text for path, text in files.items() if _PARSERS in Path(path).name)
    planned = {name.partition("=")[0] for name in engine.options.planned.values()}
    metrics = {name.removesuffix("_count") for name in engine.metrics.all}
    parsers = engine.parsers
    names = {getattr(parsers, field.name) for field in fields(parsers)}
    return [
        *(f"option {name}" for name in sorted(planned - set(table))),
        *(f"metric {name}" for name in sorted(metrics) if f'"{name}"' not in text),
        *(f"parser {name}" for name in sorted(names) if f'"{name}"' not in parser_text),
    ]


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.engine_table", description=__doc__)
    parser.add_argument("version", help="version of SGLang, for example 0.5.23")
    version = parser.parse_args().version
    with tempfile.TemporaryDirectory() as folder:
        files = sources(download(version, Path(folder)))
    table = options(files)
    target = FOLDER / engines.folder(version) / "options.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(render(version, table), encoding="utf-8")
    print(f"{target.relative_to(Path.cwd())}: {len(table)} options")
    target = target.with_name("models.json")
    known = engine_models.models(files)
    target.write_text(engine_models.render(version, known), encoding="utf-8")
    print(f"{target.relative_to(Path.cwd())}: {len(known['architectures'])} architectures")
    engine = engines.of(nearest(version, (one for one in engines.VERSIONS if one != version)))
    print("\n".join(differences(table, engine)))
    gone = missing(table, files, engine)
    print(f"names of SGLang {engine.version} that are not in the source: {_list(gone)}")
    print("docs/engines.md says what else to check")


if __name__ == "__main__":
    main()
