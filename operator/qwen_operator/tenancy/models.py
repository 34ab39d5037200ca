"""Which models tenants may serve: a list of places that weights come from, and its rule in Python and in CEL.

An entry is a place as `place_of` writes it, or the beginning of one with `*` at the end. Unlike the other lists, this
one allows everything while it is empty: weights are data, which the operator inspects.

Anybody may propose a change to a public repository on Hugging Face. The proposal is then a revision of that
repository, as refs/pr/7 or by its commit. So an entry without `@` stands for the main branch alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen_operator.api import uris
from qwen_operator.objects import mapping, members, text
from qwen_operator.tenancy.lists import Setting
from qwen_operator.tenancy.rules import allowed_variable, may_allow

RIGHT = "a tenant may serve any model while the list is empty, and then only models from the places on it"
FORM = (
    "a whole source such as hf://Qwen/Qwen3-8B, hf://Qwen/Qwen3-8B@v1.0 or pvc://models/qwen, or the beginning of one "
    "with * after a slash, such as hf://Qwen/*, hf://Qwen/Qwen3-*, oci://registry.example.com/models/* or pvc://*"
)
"""What an entry of the list must be."""
SHOWN = 3
"""How many entries of the list a message names."""
_ONLY = "tenants of this namespace may serve only "
_ONLY_MAIN = " (an entry without @ allows only the main branch)"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the weights come from. `revision` is "" for a repository's main branch, and for what is no repository."""

    uri: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{self.uri}@{self.revision}" if self.revision else self.uri


_HUBS = tuple(form.prefix for form in uris.FORMS.values() if form.repository)


def field_of(spec: Mapping[str, Any]) -> str:
    """The path of the field that decides about the place."""
    return "spec.source" if mapping(spec, "source") else "spec.model"


def place_of(spec: Mapping[str, Any], hub: str) -> Place:
    """The place of a spec as the user wrote it. Without a source it is a repository of `hub`, the scheme of a hub."""
    source = mapping(spec, "source")
    revision, endpoint = text(source, "revision"), text(source, "endpoint")
    uri = text(source, "uri") or f"{hub}://{text(spec, 'model')}"
    # A bucket of the same name on another server is another place, which no entry can stand for.
    where = f"{uri} at {endpoint}" if endpoint else uri
    return Place(where, "" if revision in uris.MAIN_BRANCHES or uri.startswith(uris.S3.prefix) else revision)


def adapter_places(spec: Mapping[str, Any]) -> tuple[Place, ...]:
    """The places of the adapters of a spec as the user wrote them, in their order."""
    return tuple(_adapter_place(mapping(one, "source")) for one in members(spec, "adapters"))


def _adapter_place(source: Mapping[str, Any]) -> Place:
    uri, revision = text(source, "uri"), text(source, "revision")
    counts = revision not in uris.MAIN_BRANCHES and uri.startswith(_HUBS)
    return Place(uri, revision if counts else "")


def parsed(written: str) -> Place:
    """The place that `str` made this text of."""
    form = uris.FORMS.get(written.partition("://")[0])
    if form is None or not form.repository:
        return Place(written)
    uri, _, revision = written.partition("@")
    return Place(uri, "" if revision in uris.MAIN_BRANCHES else revision)


def allows(entries: tuple[str, ...], place: Place) -> bool:
    """Whether the whole list of a namespace allows the place."""
    return not entries or (uris.is_uri(place.uri) and any(_matches(entry, place) for entry in entries))


def _matches(entry: str, place: Place) -> bool:
    start = entry.removesuffix("*")
    if start == entry:
        return str(place) == entry
    return str(place).startswith(start) and (not place.revision or "@" in start or start.endswith("://"))


def is_entry(entry: str) -> bool:
    """Whether the text can be an entry of the list.

    A star stands behind the scheme, or somewhere behind the first slash after it: `hf://Qwen*` would also allow the
    organisation QwenEvil, which anybody may register.
    """
    start = entry.removesuffix("*")
    scheme, slashes, rest = start.partition("://")
    if "*" in start or scheme not in uris.FORMS or not slashes:
        return False
    if start == entry:
        return _is_place(entry)
    # The beginning of an image's address becomes a whole one with a tag.
    return not rest or ("/" in rest and (_is_place(f"{start}x") or _is_place(f"{start}x:x")))


def _is_place(written: str) -> bool:
    place = parsed(written)
    right = uris.is_uri(place.uri) and (not place.revision or uris.is_revision(place.revision))
    return right and str(place) == written


def right(entries: tuple[str, ...], place: Place) -> str:
    """What would be right in place of a place that the list does not allow."""
    more = f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    return f"{_ONLY}{', '.join(entries[:SHOWN])}{more}{_ONLY_MAIN if place.revision else ''}"


_ALLOWED = f"variables.{allowed_variable(Setting.MODELS)}"
_PLACE = "variables.modelPlace"


def _place_cel(of: str, prefix: str) -> tuple[tuple[str, str], ...]:
    """The variables PREFIXUri, PREFIXRevision and PREFIXPlace of an object; "" if there is none."""
    revision, found = f"{of}.spec.?source.?revision.orValue('')", f"variables.{prefix}Revision"
    uri = f"{of}.spec.?source.?uri.orValue(variables.defaultHub + '://' + {of}.spec.?model.orValue(''))"
    endpoint = f"{of}.spec.?source.?endpoint.orValue('')"
    where = f"{uri} + ({endpoint} == '' ? '' : ' at ' + {endpoint})"
    branch = f"{revision} in {json.dumps(uris.MAIN_BRANCHES)} || variables.{prefix}Uri.startsWith('{uris.S3.prefix}')"
    return (
        (f"{prefix}Uri", f"{of} != null ? {where} : ''"),
        (f"{prefix}Revision", f"{of} != null && !({branch}) ? {revision} : ''"),
        (f"{prefix}Place", f"variables.{prefix}Uri + ({found} == '' ? '' : '@' + {found})"),
    )


def _allows_cel() -> str:
    start = f"{_PLACE}.startsWith(p.substring(0, size(p) - 1))"
    revision = "(variables.modelRevision == '' || p.contains('@') || p.endsWith('://*'))"
    form = " && ".join(f"({rule.cel.replace('self', 'variables.modelUri')})" for rule in uris.URI_RULES)
    found = f"{_ALLOWED}.exists(p, p == {_PLACE} || (p.endsWith('*') && {start} && {revision}))"
    return f"size({_ALLOWED}) == 0 || {_PLACE} == variables.oldModelPlace || ({form} && {found})"


_ON_HUB = "(" + " || ".join(f"{{}}.startsWith('{prefix}')" for prefix in _HUBS) + ")"
_URI, _REVISION = "a.?source.?uri.orValue('')", "a.?source.?revision.orValue('')"
_COUNTS = f"!({_REVISION} in {json.dumps(('', *uris.MAIN_BRANCHES))}) && {_ON_HUB.replace('{}', _URI)}"
_ADAPTERS = f"spec.?adapters.orValue([]).map(a, {_URI} + ({_COUNTS} ? '@' + {_REVISION} : ''))"


def _allows_adapter_cel() -> str:
    """The rule for one adapter, `place`: its uri, and @REVISION of a repository."""
    on_hub = _ON_HUB.replace("{}", "place")
    form = " && ".join(f"({rule.cel.replace('self', 'uri')})" for rule in uris.URI_RULES)
    named = f"[{on_hub} ? place.split('@')[0] : place].exists(uri, {form})"
    free = f"(!({on_hub} && place.contains('@')) || p.contains('@') || p.endsWith('://*'))"
    found = f"p == place || (p.endsWith('*') && place.startsWith(p.substring(0, size(p) - 1)) && {free})"
    return f"place in variables.oldAdapters || ({named} && {_ALLOWED}.exists(p, {found}))"


VARIABLES: tuple[dict[str, str], ...] = tuple(
    {"name": name, "expression": expression}
    for name, expression in (
        *_place_cel("object", "model"),
        *_place_cel("oldObject", "oldModel"),
        ("allowsModel", _allows_cel()),
        ("oldAdapters", f"oldObject != null ? oldObject.{_ADAPTERS} : []"),
        (
            "refusedAdapters",
            f"size({_ALLOWED}) == 0 ? [] : object.{_ADAPTERS}.filter(place, !({_allows_adapter_cel()}))",
        ),
    )
)
"""The CEL variables of the rule. The chart defines `defaultHub`, and the list."""


def validations() -> tuple[dict[str, str], ...]:
    """The validations of the rule, as in the spec of a ValidatingAdmissionPolicy: of the model and of its adapters."""
    return _validation(), _adapter_validation()


def _adapter_validation() -> dict[str, str]:
    end = f": not allowed here: {RIGHT}{may_allow(Setting.MODELS)}"
    refused = "variables.refusedAdapters"
    return {
        "expression": f"size({refused}) == 0",
        "message": f"spec.adapters{end}",
        "messageExpression": f"'spec.adapters: ' + {refused}.join(', ') + {json.dumps(end)}",
    }


def _validation() -> dict[str, str]:
    first = f"{_ALLOWED}.filter(p, {_ALLOWED}.indexOf(p) < {SHOWN}).join(', ')"
    more = f"(size({_ALLOWED}) > {SHOWN} ? ' and ' + string(size({_ALLOWED}) - {SHOWN}) + ' more' : '')"
    main = f"(variables.modelRevision == '' ? '' : {json.dumps(_ONLY_MAIN)})"
    parts = (
        "(has(object.spec.source) ? 'spec.source: ' : 'spec.model: ')",
        _PLACE,
        json.dumps(f": not allowed here: {_ONLY}"),
        f"{first} + {more} + {main}",
        json.dumps(may_allow(Setting.MODELS)),
    )
    return {
        "expression": "variables.allowsModel",
        "message": f"spec.source or spec.model: not allowed here: {RIGHT}{may_allow(Setting.MODELS)}",
        "messageExpression": " + ".join(parts),
    }
