"""From a plain object to API dataclasses. Every fault is a sentence with path, value and what would be right.

The API server rejects the same faults first. Objects can still be stored without that check (an older CRD, a
switched-off validation), and a controller that crashes on one object serves no other.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from qwen_operator import untrusted
from qwen_operator.api.fields import Passthrough, Rule, camel
from qwen_operator.api.schema import INT_OR_STRING, LIST_MAP_KEYS, LIST_TYPE, PRESERVE, RULES, Schema

T = TypeVar("T")

MOST_LEVELS = 32
MOST_VALUES = 2048
MOST_CHARACTERS = 16384
"""Limits of one free-form object, such as an affinity: the API server checks only its first level."""

_TYPES = {"string": str, "integer": int, "boolean": bool, "array": list, "object": Mapping}
_TYPE_NAMES = {
    "string": "text",
    "integer": "a whole number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
}


def problems(value: Any, schema: Schema, path: str) -> list[str]:
    """Every fault of a value under a schema of `schema.object_schema`, one sentence each. Empty if there is none."""
    fault = _type_fault(value, schema)
    if fault:
        return [f"{path}: {shown(value)} must be {fault}"]
    if schema.get(PRESERVE) and (fault := size_fault(value, MOST_VALUES, MOST_CHARACTERS)):
        return [f"{path}: {fault}"]
    sentences = [f"{path}: {shown(value)} {fault}" for fault in _limit_faults(value, schema)]
    if isinstance(value, Mapping) and not schema.get(PRESERVE):
        sentences += _member_problems(value, schema, path)
    if isinstance(value, list):
        for index, item in enumerate(value):
            sentences += problems(item, schema["items"], f"{path}[{index}]")
    if not sentences:
        sentences += [_broken(value, rule, path) for rule in schema.get(RULES, ()) if not rule.holds(value)]
    return sentences


def size_fault(value: Any, values: int, characters: int) -> str | None:
    """The problem of an object that is nested too deeply or is too large; None if there is none."""
    size = untrusted.size_of(value, most=2 * values)
    if size.levels > MOST_LEVELS:
        deep = f"more than {MOST_LEVELS}" if size.levels > 2 * MOST_LEVELS else str(size.levels)
        return f"the object has {deep} levels, it must have at most {MOST_LEVELS}"
    if size.values > values:
        many = f"more than {2 * values}" if size.values > 2 * values else str(size.values)
        return f"the object has {many} keys and entries, it must have at most {values}"
    if size.characters > characters:
        return f"the object has {size.characters} characters, it must have at most {characters}"
    return None


def _broken(value: Any, rule: Rule, path: str) -> str:
    """The sentence about a broken rule. For an object, it shows the members that the rule names."""
    if not isinstance(value, Mapping):
        cure = rule.cure(value) if rule.cure else ""
        return f"{path}: {shown(value)}: {rule.message}{f'. {cure}' if cure else ''}"
    named = dict.fromkeys(re.findall(r"[A-Za-z]+(?:\.[A-Za-z]+)*", rule.message))
    members = {name: _member(value, name.split(".")) for name in named}
    values = ", ".join(f"{name} is {shown(member)}" for name, member in members.items() if member is not None)
    return f"{path}: {values}: {rule.message}" if values else f"{path}: {rule.message}"


def _member(value: Any, names: list[str]) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def shown(value: Any) -> str:
    """The value as a message shows it: one line, at most 80 characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        # ValueError: Python writes no integer of more than 4300 digits.
        return f"a value of the type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def build(cls: type[T], value: Mapping[str, Any]) -> T:
    """The dataclass of a value in which `problems` finds no fault. Null members count as not set."""
    hints = _hints(typing.cast("Any", cls))
    members = {}
    for field in dataclasses.fields(typing.cast("Any", cls)):
        member = value.get(camel(field.name))
        if member is not None:
            members[field.name] = _built(hints[field.name], member)
    return cls(**members)


@functools.cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


def _built(hint: Any, value: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType) and types.NoneType in args:
        (inner,) = (arg for arg in args if arg is not types.NoneType)
        return _built(inner, value)
    if origin is tuple:
        return tuple(_built(args[0], item) for item in value)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), value)
    return dict(value) if isinstance(value, Mapping) and hint is not Passthrough else value


def _type_fault(value: Any, schema: Schema) -> str | None:
    if schema.get(INT_OR_STRING):
        right = isinstance(value, int | str) and not isinstance(value, bool)
        return None if right else "a quantity such as 2, 500m or 4Gi"
    kind = schema["type"]
    right = isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
    return None if right else _TYPE_NAMES[kind]


def _limit_faults(value: Any, schema: Schema) -> list[str]:
    faults = []
    if isinstance(value, int):
        if value < schema.get("minimum", value):
            faults.append(f"must be at least {schema['minimum']}")
        if value > schema.get("maximum", value):
            faults.append(f"must be at most {schema['maximum']}")
    elif isinstance(value, str):
        faults += _length_faults(len(value), schema, "Length", "characters")
        if value not in schema.get("enum", (value,)):
            faults.append(f"must be one of {', '.join(schema['enum'])}")
        pattern = schema.get("pattern")
        # Python's "$" also matches before a final newline, RE2's does not.
        if pattern and not re.search(re.sub(r"\$$", r"\\Z", pattern), value, re.ASCII):
            faults.append(f"must match {pattern}")
    elif isinstance(value, list):
        faults += _length_faults(len(value), schema, "Items", "entries")
        faults += _duplicate_faults(value, schema)
    else:
        faults += _length_faults(len(value), schema, "Properties", "entries")
    return faults


def _length_faults(length: int, schema: Schema, measure: str, unit: str) -> list[str]:
    least, most = schema.get(f"min{measure}", 0), schema.get(f"max{measure}", length)
    if length < least:
        return [f"has {length} {unit}, it must have at least {least}"]
    return [f"has {length} {unit}, it must have at most {most}"] if length > most else []


def _duplicate_faults(value: list[Any], schema: Schema) -> list[str]:
    keys = schema.get(LIST_MAP_KEYS)
    if schema.get(LIST_TYPE) not in ("set", "map"):
        return []
    seen: list[Any] = []
    for item in value:
        key = [item.get(name) for name in keys] if keys and isinstance(item, Mapping) else item
        if key in seen:
            return [f"has {shown(key)} twice, every entry must be there once"]
        seen.append(key)
    return []


def _member_problems(value: Mapping[str, Any], schema: Schema, path: str) -> list[str]:
    sentences = []
    properties: Schema | None = schema.get("properties")
    for key, member in value.items():
        if not isinstance(key, str):
            sentences.append(f"{path}: the key {shown(key)} must be text")
        elif properties is None:
            sentences += problems(member, schema["additionalProperties"], f"{path}[{key}]")
        elif key not in properties:
            sentences.append(f"{path}.{key}: there is no such field; the fields are {', '.join(properties)}")
        elif member is not None:
            sentences += problems(member, properties[key], f"{path}.{key}")
    required = schema.get("required", ())
    sentences += [f"{path}.{name}: must be set" for name in required if value.get(name) is None]
    return sentences
