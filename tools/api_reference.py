"""The page docs/reference/api.md, generated from the types that also make the CRD: `make api-reference`."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwen_operator.api import crd
from qwen_operator.api.advice import ADVICE
from qwen_operator.api.conditions import ALWAYS, METRICS_LOST, PROGRESS, ConditionType, Reason
from qwen_operator.api.fields import Rule, camel
from qwen_operator.api.schema import (
    INT_OR_STRING,
    LIST_MAP_KEYS,
    LIST_TYPE,
    PRESERVE,
    RULES,
    Schema,
    object_schema,
)
from qwen_operator.api.spec import NAME_RULES, Spec
from qwen_operator.api.status_types import Status

_HEAD = f"""\
<!-- Generated from operator/qwen_operator/api by `make api-reference`. Do not edit. -->
# API reference

Every field of `{crd.KIND}`, `{crd.GROUP}/{crd.VERSION}`. `kubectl explain qd.spec.FIELD` prints the same text in your
cluster. The short name is `qd`. The objects are namespaced. You write `spec`; only the operator writes `status`.

The API server checks types, bounds and rules before it stores an object, and the operator checks them again. You may
leave out every field that is not required; its description says what happens then. [Glossary](../glossary.md) of terms.
"""
_CONDITIONS = """\
## Conditions

`status.conditions` follows the Kubernetes convention: one entry per `type`. In alerts and scripts, match `type`,
`status` and `reason`. [Reasons, and what to do](../reasons.md) explains each condition.

| type | present |
|---|---|
"""
_REASONS = """\
## Reasons

The `reason` of a condition or of an Event is one of these words. [Reasons, and what to do](../reasons.md) explains
each of them.
"""
_COLUMNS = """\
## Columns of kubectl get

| column | value | meaning | shown |
|---|---|---|---|
"""
_EXAMPLE = re.compile(r"^(?P<text>.*?) ?\b(?:Example: (?P<one>.+?)|Examples: (?P<several>.+?))\.?$", re.DOTALL)
# Characters with a meaning in Markdown or in a table. Backticks stay, because docstrings have them around names.
_SPECIAL = re.compile(r"([\\*_\[\]|])")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of one object. `default` is Markdown, "" if the field has no default value.

    `members` is the dataclass of an object, or of a list's elements, None for anything else.
    """

    path: str
    schema: Schema
    default: str
    members: type | None

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def members_path(self) -> str:
        """The path of the object that the field holds: `spec.engine`, `spec.engine.env[]`."""
        return f"{self.path}[]" if self.schema.get("type") == "array" else self.path


def render() -> str:
    """The page as Markdown. The same types always give the same bytes."""
    name_rules = "".join(f"* {_text(rule.message)}\n" for rule in NAME_RULES)
    parts = [
        _HEAD,
        f"## Metadata\n\n{name_rules}",
        *_objects("spec", Spec, str(Spec.__doc__), level=2),
        *_objects("status", Status, str(Status.__doc__), level=2),
        _CONDITIONS + "".join(_condition(kind) for kind in ConditionType),
        *_reasons(),
        *_version(crd.definition()["spec"]["versions"][0]),
    ]
    return "\n".join(parts)


def fields_of(path: str, cls: type) -> Iterator[Field]:
    """The fields of one object, in the order of the types."""
    schema, hints = object_schema(cls), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name = camel(field.name)
        required = "always set" if path.startswith("status") else "required"
        default = required if name in schema.get("required", ()) else _default(field.default)
        yield Field(f"{path}.{name}", schema["properties"][name], default, _members(hints[field.name]))


def all_fields() -> Iterator[Field]:
    """Every field of spec and status. The fields of a nested object follow their parent."""
    yield from _nested("spec", Spec)
    yield from _nested("status", Status)


def _nested(path: str, cls: type) -> Iterator[Field]:
    for field in fields_of(path, cls):
        yield field
        if field.members is not None:
            yield from _nested(field.members_path, field.members)


def _objects(path: str, cls: type, description: str, level: int) -> Iterator[str]:
    """The table of an object, then those of the objects in it."""
    fields = list(fields_of(path, cls))
    rules: Iterable[Rule] = object_schema(cls).get(RULES, ())
    yield "".join(
        [
            f"{'#' * level} {path}\n\n{_text(_split(description)[0])}\n\n",
            "| field | type | default | description |\n|---|---|---|---|\n",
            *map(_row, fields),
            *(["\nRules:\n\n"] if rules else []),
            *(f"* {_text(rule.message)}\n" for rule in rules),
        ]
    )
    for field in fields:
        if field.members is not None:
            yield from _objects(field.members_path, field.members, field.schema["description"], level=3)


def _row(field: Field) -> str:
    bounds = ", ".join(_bounds(field.schema))
    kind = _type(field) + (f"<br>{bounds}" if bounds else "")
    # An anchor for every field, so that other pages can link to it.
    name = f'<a id="{field.path}"></a>{_code(field.name)}'
    return f"| {name} | {kind} | {field.default} | {_description(field)} |\n"


def _description(field: Field) -> str:
    text, examples = _split(field.schema["description"])
    parts = [_text(text)]
    # The rules of an object stand below its own table.
    if field.members is None:
        parts += [f"Rule: {_text(rule.message)}" for rule in field.schema.get(RULES, ())]
        parts += [f"Rule for each: {_text(rule.message)}" for rule in field.schema.get("items", {}).get(RULES, ())]
    if examples:
        parts.append("Example: " + " or ".join(map(_code, examples)))
    return "<br>".join(parts)


def _split(description: str) -> tuple[str, list[str]]:
    """A description without its examples, and the examples."""
    match = _EXAMPLE.match(description)
    if match is None:
        return description, []
    return match["text"], [match["one"]] if match["one"] else match["several"].split(", ")


def _type(field: Field) -> str:
    kind = _plain_type(field.schema)
    if field.members is None:
        return kind
    return f"[{kind}](#{re.sub(r'[^a-z]', '', field.members_path.lower())})"


def _plain_type(schema: Schema) -> str:
    if INT_OR_STRING in schema:
        return "quantity"
    if schema.get("type") == "array":
        return f"list of {_plain_type(schema['items'])}s"
    if "additionalProperties" in schema:
        return f"map of {_plain_type(schema['additionalProperties'])}s".replace("quantitys", "quantities")
    if PRESERVE in schema:
        return "Kubernetes object"
    return "time" if schema.get("format") == "date-time" else str(schema["type"])


def _bounds(schema: Schema) -> Iterator[str]:
    if "enum" in schema:
        yield "one of " + ", ".join(map(_code, schema["enum"]))
    if text := _range(schema, ("minimum", "maximum")):
        yield text
    if text := _range(schema, ("minLength", "maxLength")):
        yield f"{text} characters"
    if "pattern" in schema:
        yield f"matches {_code(schema['pattern'])}"
    if "maxItems" in schema:
        yield f"at most {schema['maxItems']} items"
    if "maxProperties" in schema:
        yield f"at most {schema['maxProperties']} keys"
    if schema.get(LIST_TYPE) == "set":
        yield "none twice"
    if keys := schema.get(LIST_MAP_KEYS):
        yield f"one for each {' and '.join(map(_code, keys))}"
    elements = schema.get("items") or schema.get("additionalProperties")
    if elements and "properties" not in elements:
        yield from (f"each {text}" for text in _bounds(elements))


def _range(schema: Schema, keys: tuple[str, str]) -> str:
    least, most = (schema.get(key) for key in keys)
    if least is not None and most is not None:
        return f"{least} to {most}"
    if most is not None:
        return f"at most {most}"
    return f"at least {least}" if least is not None else ""


def _default(value: Any) -> str:
    return _code(str(value)) if isinstance(value, int | str) and value != "" else ""


def _members(hint: Any) -> type | None:
    """The dataclass inside of `X`, `X | None` or `tuple[X, ...]`."""
    if dataclasses.is_dataclass(hint):
        return typing.cast("type", hint)
    if typing.get_origin(hint) in (tuple, typing.Union, types.UnionType):
        return next(filter(None, map(_members, typing.get_args(hint))), None)
    return None


def _condition(kind: ConditionType) -> str:
    return f"| {_code(kind)} | {'always' if kind in ALWAYS else 'only while it is true'} |\n"


def _reasons() -> Iterator[str]:
    """Every reason once."""
    yield _REASONS
    rest = [reason for reason in Reason if reason not in PROGRESS | METRICS_LOST | ADVICE.keys()]
    yield f"Steps on the way; they make no Event: {_listed(PROGRESS)}.\n"
    yield f"The metrics of the engines cannot be used: {_listed(METRICS_LOST)}.\n"
    yield f"All others without advice: {_listed(rest)}.\n"
    rows = (f"| {_code(reason)} | {_text(text)} |\n" for reason, text in ADVICE.items())
    yield "The messages of these reasons contain advice:\n\n| reason | advice |\n|---|---|\n" + "".join(rows)


def _listed(reasons: Collection[Reason]) -> str:
    return ", ".join(_code(reason) for reason in Reason if reason in reasons)


def _version(version: Mapping[str, Any]) -> Iterator[str]:
    rows = (
        f"| {column['name'].upper()} | {_code(column['jsonPath'].lstrip('.'))} | {_text(column['description'])} "
        f"| {'with `-o wide`' if column['priority'] else 'always'} |\n"
        for column in version["additionalPrinterColumns"]
    )
    yield _COLUMNS + "".join(rows)
    scale = version["subresources"]["scale"]
    paths = {key: _code(path.lstrip(".")) for key, path in scale.items()}
    yield (
        "## Subresources\n\n"
        "* `status`: the operator's own. A write to the object itself cannot change it.\n"
        "* `scale`, for `kubectl scale`, a HorizontalPodAutoscaler or KEDA. "
        f"Wanted replicas: {paths['specReplicasPath']}. Present replicas: {paths['statusReplicasPath']}. "
        f"Selector of their pods: {paths['labelSelectorPath']}.\n"
    )


def _text(text: str) -> str:
    """Plain text as Markdown that shows the same text, even in a table's cell."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("<", "&lt;")


def _code(text: str) -> str:
    """Plain text as code. In some renderers a bar ends the cell of a table even inside backticks, so it is escaped."""
    if "|" not in text and "`" not in text:
        return f"`{text}`"
    safe = "".join(char if char.isalnum() or char in " /-.:" else f"&#{ord(char)};" for char in text)
    return f"<code>{safe}</code>"


if __name__ == "__main__":
    sys.stdout.write(render())
