"""Files that users give to `plan` and `render`. Their size is limited, and a bad file gives an error of one sentence.

YAML is imported only if a file is not JSON, because that import is half of the start-up time.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_runtime.checkpoints.chat import LARGEST_CHAT_FILE
from qwen_runtime.checkpoints.config import CONFIG_FILE, LARGEST_CONFIG
from qwen_runtime.checkpoints.reading import InvalidFactsError, parse_json

MOST_BYTES = 8_000_000
# A node object has up to 50 kB, most of it the names of images.
MOST_NODE_BYTES = 200_000_000
_SPACE = re.compile(r"\s*")


class InputError(Exception):
    """Input that cannot be used. The text is for the user."""


def config_json(path: str) -> dict[str, Any]:
    """The JSON object of a model's config.json, read as strictly as an inspection reads it."""
    try:
        return parse_json(_read(path, LARGEST_CONFIG, "config.json"), path, LARGEST_CONFIG)
    except InvalidFactsError as error:
        raise InputError(str(error)) from error


def documents(path: str) -> list[Any]:
    """The documents of a YAML or JSON file."""
    return _documents(path, MOST_BYTES, "manifest or values file")


def nodes(path: str) -> list[Mapping[str, Any]]:
    """Node objects, from any output of `kubectl get nodes` as YAML or JSON: a list, one object, or several.

    Items of a list of nodes that are no objects are among them, so that the inventory can name them.
    """
    items = [one for document in _documents(path, MOST_NODE_BYTES, "list of nodes") for one in _items(document)]
    other_kinds = sorted({str(one.get("kind")) for one in items if isinstance(one, Mapping)} - {"Node", "None"})
    node_objects = [one for one in items if isinstance(one, Mapping) and one.get("kind", "Node") == "Node"]
    if node_objects:
        return [*node_objects, *(one for one in items if not isinstance(one, Mapping))]
    content = f"holds {', '.join(other_kinds)}, but no Node" if other_kinds else "holds no Node objects"
    raise InputError(f"{path}: {content}; right would be the output of `kubectl get nodes -o yaml`")


def _items(document: Any) -> list[Any]:
    if isinstance(document, Mapping) and "items" in document:
        document = document["items"]
    return document if isinstance(document, list) else [document]


def beside(path: str) -> frozenset[str]:
    """The names of all files of the checkpoint whose config.json this is. Empty for a file of another name."""
    if Path(path).name != CONFIG_FILE:
        return frozenset()
    try:
        return frozenset(entry.name for entry in Path(path).absolute().parent.iterdir())
    except OSError as error:
        raise InputError(f"{path}: its folder cannot be read: {error.strerror or error}") from error


def read_beside(path: str, name: str) -> bytes:
    """A small file of the same checkpoint."""
    return _read(str(Path(path).with_name(name)), LARGEST_CHAT_FILE, "such file")


def _documents(path: str, limit: int, name: str) -> list[Any]:
    data = _read(path, limit, name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read: it is not UTF-8 text") from error
    if text.lstrip()[:1] in ("{", "["):
        values = _json_stream(text)
        if values is not None:
            return values
    return _yaml(path, text)


def _json_stream(text: str) -> list[Any] | None:
    """The JSON values of a text, one after the other, as `jq` prints them. None if the text is not JSON."""
    decoder = json.JSONDecoder()
    values, at = [], _skip(text, 0)
    try:
        while at < len(text):
            value, end = decoder.raw_decode(text, at)
            values.append(value)
            at = _skip(text, end)
    except (ValueError, RecursionError):
        return None
    return values


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _yaml(path: str, text: str) -> list[Any]:
    import yaml  # noqa: PLC0415 - half of the start-up time of a call that needs no YAML

    # The C parser, if it is available, reads the nodes of a large cluster ten times as fast.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return [one for one in yaml.load_all(text, Loader=loader) if one is not None]
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise InputError(f"{path}: is not YAML: {where:.200}") from error
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply to be read") from None


def _read(path: str, limit: int, name: str) -> bytes:
    try:
        if path == "-":
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > limit:
        raise InputError(f"{path}: is larger than {limit} bytes, which no {name} is")
    return data
