"""From API dataclasses to an OpenAPI schema, the one that the CRD carries and that `reading.py` checks."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from qwen_operator.api.fields import Passthrough, Rule, camel

Schema = dict[str, Any]

PRESERVE = "x-kubernetes-preserve-unknown-fields"
LIST_TYPE = "x-kubernetes-list-type"
LIST_MAP_KEYS = "x-kubernetes-list-map-keys"
INT_OR_STRING = "x-kubernetes-int-or-string"
RULES = "x-kubernetes-validations"

_KEYWORDS = {"list_type": LIST_TYPE, "list_map_keys": LIST_MAP_KEYS, "preserve": PRESERVE}
_SCALARS: dict[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer", "format": "int64"},
    bool: {"type": "boolean"},
    # The API server cannot limit what is below the first level of such an object. `reading.py` does.
    Passthrough: {"type": "object", PRESERVE: True, "maxProperties": 32},
    int | str: {INT_OR_STRING: True},  # a Kubernetes quantity: 2, "500m" or "4Gi"
}


@cache
def object_schema(cls: type) -> Schema:
    """The schema of a dataclass: `type`, `description` from the docstring, `properties`, `required`, and Rule
    objects under x-kubernetes-validations."""
    hints = get_type_hints(cls)
    properties: Schema = {}
    required: list[str] = []
    for field in dataclasses.fields(cls):
        properties[camel(field.name)] = _field_schema(hints[field.name], field.metadata)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            required.append(camel(field.name))
    schema: Schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    rules = getattr(cls, "RULES", ())
    return schema | ({RULES: list(rules)} if rules else {})


def _field_schema(hint: Any, metadata: Mapping[str, Any]) -> Schema:
    keywords = {_keyword(key): value for key, value in metadata["schema"].items()}
    items = {_keyword(key): value for key, value in keywords.pop("items", {}).items()}
    schema = {"description": metadata["description"], **_type_schema(hint, items), **keywords}
    rules: list[Rule] = [*schema.get(RULES, ()), *metadata["rules"]]
    return schema | ({RULES: rules} if rules else {})


def _type_schema(hint: Any, items: Schema) -> Schema:
    if hint in _SCALARS:
        return dict(_SCALARS[hint])
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (arg for arg in args if arg is not types.NoneType)
        return _type_schema(inner, items)
    if origin is tuple:
        return {"type": "array", "items": _type_schema(args[0], {}) | items}
    if dataclasses.is_dataclass(hint):
        return dict(object_schema(typing.cast("type", hint)))
    assert issubclass(origin, Mapping), f"no schema for {hint}"
    return {"type": "object", "additionalProperties": _type_schema(args[1], {}) | items}


def _keyword(name: str) -> str:
    return _KEYWORDS.get(name, RULES if name == "rules" else camel(name))
