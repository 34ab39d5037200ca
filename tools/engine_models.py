"""Reads from the source of an SGLang package which models, formats and parsers this version has.

Like the table of options, it reads the source and never runs it. The result is the `models.json` of a version's folder.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

_SRT = "sglang/srt/"
_MODELS = f"{_SRT}models"
_CONFIG = f"{_SRT}configs/model_config.py"
_QUANTIZATION = f"{_SRT}layers/quantization/__init__.py"
_COMMON = f"{_SRT}utils/hf_transformers/common.py"
_TOOL_PARSERS = f"{_SRT}function_call/parser_names.py"
_REASONING_PARSERS = f"{_SRT}parser/reasoning_parser_names.py"

ModelTable = dict[str, list[str]]
"""The members of a models.json except the version. All lists are sorted, except `contextKeys`."""


def models(files: Mapping[str, str]) -> ModelTable:
    """The table of a version. `files` maps paths in the wheel to texts. Raises LookupError if something is gone."""
    modules = [ast.parse(text) for path, text in files.items() if str(PurePosixPath(path).parent) == _MODELS]
    architectures = {name for module in modules for name in _entries(module)}
    textless = set(_textless(ast.parse(files[_CONFIG])))
    pooling = _pooling({one.name: one for module in modules for one in module.body if isinstance(one, ast.ClassDef)})
    return {
        "architectures": sorted(architectures),
        "textless": sorted(architectures & textless),
        "embeds": sorted((architectures & pooling) - textless),
        "formats": sorted(_formats(ast.parse(files[_QUANTIZATION]))),
        "contextKeys": _list(files, _COMMON, "CONTEXT_LENGTH_KEYS"),
        "toolCallParsers": sorted(_list(files, _TOOL_PARSERS, "TOOL_CALL_PARSER_NAMES")),
        "reasoningParsers": sorted(_list(files, _REASONING_PARSERS, "REASONING_PARSER_NAMES")),
    }


def render(version: str, table: ModelTable) -> str:
    """The text of a models.json. Each name has its own line, so that a diff shows what changed."""
    return json.dumps({"sglang": version, **table}, indent=1) + "\n"


def _entries(module: ast.Module) -> Iterator[str]:
    """The classes that a module of models registers: its EntryClass, one class or a list."""
    value = _assigned(module, "EntryClass")
    for one in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
        if isinstance(one, ast.Name):
            yield one.id


def _textless(config: ast.Module) -> Iterator[str]:
    """The classes that never generate text: the names that `is_generation_model` compares."""
    for node in ast.walk(config):
        if isinstance(node, ast.FunctionDef) and node.name == "is_generation_model":
            for one in ast.walk(node):
                if isinstance(one, ast.Compare) and isinstance(one.left, ast.Constant):
                    yield str(one.left.value)
            return
    raise LookupError(f"{_CONFIG} has no is_generation_model")


def _pooling(classes: Mapping[str, ast.ClassDef]) -> set[str]:
    """The classes whose forward has the argument get_embedding, by themselves or by a base class."""

    def pools(name: str, seen: frozenset[str]) -> bool:
        one = classes.get(name)
        if one is None or name in seen:
            return False
        for item in one.body:
            if isinstance(item, ast.FunctionDef) and item.name == "forward":
                return any(argument.arg == "get_embedding" for argument in item.args.args)
        bases = [base.id for base in one.bases if isinstance(base, ast.Name)]
        return any(pools(base, seen | {name}) for base in bases)

    return {name for name in classes if pools(name, frozenset())}


def _formats(module: ast.Module) -> Iterator[str]:
    """The methods of quantization on NVIDIA GPUs: the base table, and what `if is_cuda()` adds to it."""
    table = _assigned(module, "BASE_QUANTIZATION_METHODS")
    if table is None:
        raise LookupError(f"{_QUANTIZATION} has no BASE_QUANTIZATION_METHODS")
    yield from _keys(table)
    for node in module.body:
        if isinstance(node, ast.If) and "is_cuda()" in ast.unparse(node.test):
            for one in ast.walk(node):
                if isinstance(one, ast.Dict):
                    yield from _keys(one)


def _keys(table: ast.expr) -> Iterator[str]:
    if isinstance(table, ast.Dict):
        yield from (str(key.value) for key in table.keys if isinstance(key, ast.Constant))


def _list(files: Mapping[str, str], path: str, name: str) -> list[str]:
    value = _assigned(ast.parse(files[path]), name)
    if isinstance(value, ast.List):
        return [str(one.value) for one in value.elts if isinstance(one, ast.Constant)]
    raise LookupError(f"{path} has no list {name}")


def _assigned(module: ast.Module, name: str) -> ast.expr | None:
    """The value of a variable of a module, None if it has none."""
    for node in module.body:
        if isinstance(node, ast.Assign):
            targets: list[ast.expr] = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value
    return None
