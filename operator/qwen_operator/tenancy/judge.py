"""Holds a spec against the platform team's lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwen_operator.api.reading import shown
from qwen_operator.objects import mapping
from qwen_operator.tenancy import models
from qwen_operator.tenancy.lists import Setting, Tenancy
from qwen_operator.tenancy.rules import RULES, Entry, Rule, Shape, may_allow, option_name

# What a rule may raise for a value of an unexpected form. CEL fails in these cases too, which is a refusal.
_BAD_FORM = (TypeError, AttributeError, LookupError, ValueError)
_VOLUMES, _MOUNTS = ("pod", "volumes"), ("pod", "volumeMounts")


@dataclass(frozen=True, slots=True)
class Refused:
    """One entry of a spec that the lists do not allow. `setting` is the list, `right` says what would be right."""

    field: str
    value: Any
    setting: Setting
    right: str

    @property
    def message(self) -> str:
        """The field, its value, what would be right, and who may allow it."""
        return f"{self.field}: {shown(self.value)} is not allowed here: {self.right}{may_allow(self.setting)}"


def refused(
    spec: Mapping[str, Any], tenancy: Tenancy, namespace: str, before: Mapping[str, Any] | None = None
) -> tuple[Refused, ...]:
    """What a spec asks for beyond the lists of its namespace.

    `spec` is as the user wrote it. `before` has the form of a spec too: its entries may stay, because an object that
    ran before the lists became stricter can still be changed.
    """
    old = before or {}
    entries = tuple(
        Refused(f"{rule.name}{place}", item, rule.setting, rule.right)
        for rule in RULES
        for place, key, item in _against(rule, spec, tenancy, namespace)
        if not _stays(rule, key, item, _at(old, rule.path))
    )
    return (*_refused_model(spec, old, tenancy, namespace), *entries)


def _refused_model(
    spec: Mapping[str, Any], old: Mapping[str, Any], tenancy: Tenancy, namespace: str
) -> tuple[Refused, ...]:
    allowed, place = tenancy.allowed(namespace, Setting.MODELS), models.place_of(spec, tenancy.hub)
    if models.allows(allowed, place) or place == models.place_of(old, tenancy.hub):
        return ()
    return (Refused(models.field_of(spec), str(place), Setting.MODELS, models.right(allowed, place)),)


def _against(rule: Rule, spec: Mapping[str, Any], tenancy: Tenancy, namespace: str) -> Iterator[tuple[str, str, Any]]:
    """The entries, as `_entries` gives them, that the rule refuses."""
    allowed = tenancy.allowed(namespace, rule.setting)
    volumes = _own_volumes(spec, tenancy, namespace) if rule.path == _MOUNTS else frozenset()
    for place, key, item in _entries(rule, _at(spec, rule.path)):
        if not _holds(rule, Entry(item, key, allowed, volumes)):
            yield place, key, item


def _own_volumes(spec: Mapping[str, Any], tenancy: Tenancy, namespace: str) -> frozenset[str]:
    """The names of the volumes that the rule allows."""
    (rule,) = [rule for rule in RULES if rule.path == _VOLUMES]
    bad = [item for _, _, item in _against(rule, spec, tenancy, namespace)]
    names = [item.get("name") for item in _at(spec, _VOLUMES) or () if isinstance(item, Mapping) and item not in bad]
    return frozenset(name for name in names if isinstance(name, str)) - {
        item.get("name") for item in bad if isinstance(item, Mapping) and isinstance(item.get("name"), str)
    }


def _entries(rule: Rule, value: Any) -> Iterator[tuple[str, str, Any]]:
    """(place below the field, key, item) of everything that the rule judges."""
    if rule.shape is Shape.FIELD:
        yield from [("", "", value)] if value is not None else []
    elif rule.shape is Shape.MAP:
        yield from ((f"[{key}]", str(key), item) for key, item in (value or {}).items())
    elif rule.shape is Shape.LIST:
        yield from ((f"[{index}]", "", item) for index, item in enumerate(value or ()))
    else:
        yield from _options(value or [])


def _options(words: list[str]) -> Iterator[tuple[str, str, Any]]:
    """(place, option with its values as `rendered` writes it, word) of a list of options."""
    starts = [index for index, word in enumerate(words) if word.startswith("--")]
    for index, word in enumerate(words):
        first = max((start for start in starts if start <= index), default=index)
        end = min((start for start in starts if start > index), default=len(words))
        yield f"[{index}]", "\n".join(rendered(words[first:end])), word


def rendered(words: list[str]) -> list[str]:
    """One option with its values, as the operator writes it into a command."""
    name = option_name(words[0])
    first = words[0][len(name) + 1 :].strip()
    values = [*([first] if len(words[0]) > len(name) else []), *words[1:]]
    return [f"{name}={values[0]}"] if len(values) == 1 else [name, *values]


def _holds(rule: Rule, entry: Entry) -> bool:
    try:
        return rule.holds(entry)
    except _BAD_FORM:
        return False


def _stays(rule: Rule, key: str, item: Any, old: Any) -> bool:
    """Whether the entry was there before."""
    if old is None:
        return False
    if rule.shape is Shape.FIELD:
        return bool(item == old)
    if rule.shape is Shape.MAP:
        return key in old and bool(old[key] == item)
    if rule.shape is Shape.LIST:
        return item in old
    words = key.split("\n")
    return any(old[start : start + len(words)] == words for start in range(len(old)))


def _at(spec: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    *outer, last = path
    return mapping(spec, *outer).get(last)
