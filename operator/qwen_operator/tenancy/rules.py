"""One rule for each field of `spec.pod` and `spec.engine` that the platform team decides about.

A rule has two forms that must agree: `holds` in Python, and `cel` for the API server. A test holds both against the
same table. In both forms an error counts as a refusal.

In `cel`, `item` is the judged entry: an entry of a list, a key of a mapping, or the field itself. VALUE stands for the
value of that key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from qwen_operator.tenancy.lists import MODEL_PATHS, PATTERNS, Setting, matches

_SIMPLE_NAME = re.compile(r"[A-Za-z0-9_-]+")
_NUMBER = re.compile(r"-[0-9.]+")
_LOST_NODE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_TOLERATION = ("key", "operator", "value", "effect", "tolerationSeconds")
_MOUNT = ("name", "mountPath", "readOnly", "recursiveReadOnly", "subPath")
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_SOURCES = ("secretKeyRef", "configMapKeyRef", "fieldRef", "resourceFieldRef")
_IDS = ("runAsUser", "runAsGroup", "fsGroup")
_DEFAULT_PROFILES = ("seccompProfile", "appArmorProfile")
_POLICIES = ("fsGroupChangePolicy", "supplementalGroupsPolicy")


class Shape(Enum):
    """What a rule judges: the field itself, each entry of a list, or each key of a mapping.

    WORDS is a list of which an update must keep all entries if it keeps one that is refused: the meaning of an entry
    depends on the one before.
    """

    FIELD = "field"
    LIST = "list"
    MAP = "map"
    WORDS = "words"


@dataclass(frozen=True, slots=True)
class Entry:
    """What `holds` gets. `key` is the key of a mapping, else "". `allowed` is the rule's list.

    `volumes` has the names of the volumes in spec.pod that the rule for volumes allows.
    """

    value: Any
    key: str
    allowed: tuple[str, ...]
    volumes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rule:
    """The rule for one field, by its path below `spec`.

    `setting` is the list that the platform team may extend. `right` says what tenants may write. `shown` is CEL for
    the text that names the item in messages.
    """

    path: tuple[str, ...]
    shape: Shape
    setting: Setting
    right: str
    holds: Callable[[Entry], bool]
    cel: str
    shown: str = "string(item)"

    @property
    def name(self) -> str:
        """The path as messages show it."""
        return ".".join(("spec", *self.path))


def _listed(entry: Entry) -> bool:
    return entry.value in entry.allowed


def _simple_key(entry: Entry) -> bool:
    return bool(_SIMPLE_NAME.fullmatch(entry.key)) or matches(entry.key, entry.allowed)


def _toleration(entry: Entry) -> bool:
    item, key = entry.value, entry.value.get("key")
    if not key or not set(item) <= set(_TOLERATION):
        return False
    if matches(key, entry.allowed):
        return True
    return key in _LOST_NODE and item["effect"] == "NoExecute" and _is_number(item["tolerationSeconds"])


def _affinity(entry: Entry) -> bool:
    if entry.key == "nodeAffinity":
        return True
    if entry.key not in ("podAffinity", "podAntiAffinity") or not set(entry.value) <= {_REQUIRED, _PREFERRED}:
        return False
    preferred = entry.value.get(_PREFERRED, [])
    terms = [*entry.value.get(_REQUIRED, []), *(item["podAffinityTerm"] for item in preferred)]
    return all(set(item) <= {"weight", "podAffinityTerm"} for item in preferred) and all(
        isinstance(term, Mapping) and set(term) <= set(entry.allowed) for term in terms
    )


def _volume(entry: Entry) -> bool:
    kinds = set(entry.value) - {"name"}
    sources = entry.value["projected"].get("sources", []) if "projected" in kinds else []
    inner = {kind for source in sources for kind in _members(source)}
    return kinds | inner <= set(entry.allowed)


def _members(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError("an object is needed")
    return value


def _mount(entry: Entry) -> bool:
    path = entry.value["mountPath"]
    known = set(entry.value) <= set(_MOUNT) and entry.value["name"] in entry.volumes
    return known and ".." not in path and matches(path, entry.allowed)


def _security(entry: Entry) -> bool:
    key, value = entry.key, entry.value
    if key in entry.allowed or key in _POLICIES:
        return True
    if key in _IDS:
        return _is_number(value) and value > 0
    if key == "runAsNonRoot":
        return value is True
    if key == "supplementalGroups":
        return all(_is_number(group) and group > 0 for group in value)
    return key in _DEFAULT_PROFILES and value == {"type": "RuntimeDefault"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _word(entry: Entry) -> bool:
    item: str = entry.value
    if not item.startswith("-"):
        return True
    return bool(_NUMBER.fullmatch(item)) or option_name(item) in entry.allowed or item in entry.allowed


def option_name(item: str) -> str:
    """The name of an option: the text before the first `=` or space."""
    return re.split("[= ]", item, maxsplit=1)[0]


def _variable(entry: Entry) -> bool:
    source = entry.value.get("valueFrom") or {}
    return matches(entry.value["name"], entry.allowed) and set(source) <= set(_SOURCES)


def cel_matches(text: str, setting: Setting) -> str:
    """Whether the list has the text, or a pattern of it, in CEL."""
    listed = f"variables.{allowed_variable(setting)}"
    return _cel_pattern(text, listed) if setting in PATTERNS else f"{text} in {listed}"


def _cel_pattern(text: str, listed: str) -> str:
    """CEL of `lists.matches`; `listed` is CEL for the patterns."""
    rest = f"{text}.substring(size(p) - 1)"
    tag = f" && (!(p.endsWith(':*') || p.endsWith('@*')) || !{rest}.contains('/'))"
    start = f"p.endsWith('*') && {text}.startsWith(p.substring(0, size(p) - 1)){tag}"
    return f"{listed}.exists(p, p == {text} || ({start}))"


def allowed_variable(setting: Setting) -> str:
    """The name of the CEL variable with a list."""
    return f"allowed{setting[0].upper()}{setting[1:]}"


def may_allow(setting: Setting) -> str:
    """The end of a message: who may allow it."""
    return f"; the platform team may allow it with the chart value tenancy.{setting}"


def _texts(words: tuple[str, ...]) -> str:
    return "[" + ", ".join(f"'{word}'" for word in words) + "]"


def _field(path: str, setting: Setting, right: str) -> Rule:
    return Rule(tuple(path.split(".")), Shape.FIELD, setting, right, _listed, cel_matches("item", setting))


def _keys(path: str, setting: Setting, right: str) -> Rule:
    cel = f"item.matches('^{_SIMPLE_NAME.pattern}$') || {cel_matches('item', setting)}"
    return Rule(tuple(path.split(".")), Shape.MAP, setting, right, _simple_key, cel)


def _resource(part: str) -> Rule:
    setting, right = Setting.RESOURCES, "a tenant may request cpu, memory and ephemeral-storage"

    def holds(entry: Entry) -> bool:
        return matches(entry.key, entry.allowed)

    return Rule(("pod", "resources", part), Shape.MAP, setting, right, holds, cel_matches("item", setting))


def _all(text: str, member: str, words: tuple[str, ...]) -> str:
    return f"{text}.all({member}, {member} in {_texts(words)})"


def _is(of: str, member: str, kind: str) -> str:
    return f"has({of}.{member}) && type({of}.{member}) == {kind}"


def _each(of: str, member: str, holds: str) -> str:
    """CEL: the member is absent, or a list of objects `t` that all fulfil `holds`."""
    return f"(!has({of}.{member}) || ({_is(of, member, 'list')} && {of}.{member}.all(t, type(t) == map && {holds})))"


def _shown(member: str, otherwise: str) -> str:
    return f"{_is('item', member, 'string')} ? item.{member} : '{otherwise}'"


_TERM = f"variables.{allowed_variable(Setting.POD_AFFINITY_FIELDS)}"

_WEIGHTED = (
    f"{_all('t', 'm', ('weight', 'podAffinityTerm'))} && {_is('t', 'podAffinityTerm', 'map')} && "
    f"t.podAffinityTerm.all(m, m in {_TERM})"
)
_SOURCE = f"t.all(m, m in variables.{allowed_variable(Setting.VOLUME_TYPES)})"


def _volume_cel(of: str) -> str:
    return (
        f"{of}.all(m, m == 'name' || m in variables.{allowed_variable(Setting.VOLUME_TYPES)}) && "
        f"(!has({of}.projected) || (type({of}.projected) == map && {_each(f'{of}.projected', 'sources', _SOURCE)}))"
    )


_MOUNT_PATHS = (
    f"(variables.{allowed_variable(Setting.MOUNT_PATHS)} + "
    f"(size(variables.{allowed_variable(Setting.MODELS)}) == 0 ? {_texts(MODEL_PATHS)} : []))"
)

# A volume that may only stay because it was there before gets no new place: the old one may be read-only or a folder.
_OWN_VOLUME = (
    "variables.pod.?volumes.orValue([]).exists(v, v.?name.orValue('') == item.name) && "
    f"variables.pod.volumes.all(v, v.?name.orValue('') != item.name || ({_volume_cel('v')}))"
)


RULES: tuple[Rule, ...] = (
    _keys("pod.labels", Setting.LABELS, "a tenant may use names without a domain, such as team"),
    _keys("pod.annotations", Setting.ANNOTATIONS, "a tenant may use names without a domain, such as team"),
    _field("pod.priorityClassName", Setting.PRIORITY_CLASSES, "a tenant gets the cluster's default PriorityClass"),
    Rule(
        ("pod", "tolerations"),
        Shape.LIST,
        Setting.TOLERATIONS,
        f"a tenant may tolerate nvidia.com/gpu, and {' and '.join(_LOST_NODE)} with NoExecute and tolerationSeconds",
        _toleration,
        f"{_is('item', 'key', 'string')} && item.key != '' && {_all('item', 'm', _TOLERATION)} && "
        f"({cel_matches('item.key', Setting.TOLERATIONS)} || (item.key in {_texts(_LOST_NODE)} && "
        f"has(item.effect) && item.effect == 'NoExecute' && {_is('item', 'tolerationSeconds', 'int')}))",
        _shown("key", "every taint"),
    ),
    Rule(
        ("pod", "affinity"),
        Shape.MAP,
        Setting.POD_AFFINITY_FIELDS,
        "a tenant may select nodes and pods of the own namespace, so no namespaces and no namespaceSelector",
        _affinity,
        "item == 'nodeAffinity' || (item in ['podAffinity', 'podAntiAffinity'] && type(VALUE) == map && "
        f"{_all('VALUE', 'm', (_REQUIRED, _PREFERRED))} && "
        f"{_each('VALUE', _REQUIRED, f't.all(m, m in {_TERM})')} && "
        f"{_each('VALUE', _PREFERRED, _WEIGHTED)})",
    ),
    _field("pod.runtimeClassName", Setting.RUNTIME_CLASSES, "a tenant may use the default runtime or nvidia"),
    _field("pod.schedulerName", Setting.SCHEDULERS, "a tenant may use default-scheduler"),
    _field("pod.serviceAccountName", Setting.SERVICE_ACCOUNTS, "a tenant may use default"),
    _resource("requests"),
    _resource("limits"),
    Rule(
        ("pod", "volumes"),
        Shape.LIST,
        Setting.VOLUME_TYPES,
        "a tenant may use persistentVolumeClaim, emptyDir, configMap, secret, downwardAPI, and projected of these",
        _volume,
        _volume_cel("item"),
        f"({_shown('name', 'no name')}) + ' (' + item.filter(m, m != 'name').map(m, string(m)).join(', ') + ')'",
    ),
    Rule(
        ("pod", "volumeMounts"),
        Shape.LIST,
        Setting.MOUNT_PATHS,
        "a tenant may mount the volumes of spec.pod.volumes below /mnt, /data and /templates, and below /models and at "
        f"/home/qwen/huggingface while tenancy.models is empty, with the fields {', '.join(_MOUNT)}",
        _mount,
        f"{_all('item', 'm', _MOUNT)} && {_is('item', 'name', 'string')} && {_is('item', 'mountPath', 'string')} && "
        f"{_OWN_VOLUME} && "
        f"!item.mountPath.contains('..') && {_cel_pattern('item.mountPath', _MOUNT_PATHS)}",
        _shown("mountPath", "no mountPath"),
    ),
    Rule(
        ("pod", "securityContext"),
        Shape.MAP,
        Setting.SECURITY_CONTEXT,
        "a tenant may only tighten it: runAsUser, runAsGroup, fsGroup and supplementalGroups above 0, runAsNonRoot "
        "true, seccompProfile and appArmorProfile RuntimeDefault, fsGroupChangePolicy, supplementalGroupsPolicy",
        _security,
        f"{cel_matches('item', Setting.SECURITY_CONTEXT)} || item in {_texts(_POLICIES)} || "
        f"(item in {_texts(_IDS)} && type(VALUE) == int && VALUE > 0) || "
        "(item == 'runAsNonRoot' && VALUE == true) || "
        "(item == 'supplementalGroups' && type(VALUE) == list && VALUE.all(g, type(g) == int && g > 0)) || "
        f"(item in {_texts(_DEFAULT_PROFILES)} && VALUE == {{'type': 'RuntimeDefault'}})",
    ),
    Rule(
        ("engine", "image"),
        Shape.FIELD,
        Setting.IMAGES,
        "a tenant may use every tag of the chart's engine.image",
        lambda entry: matches(entry.value, entry.allowed),
        cel_matches("item", Setting.IMAGES),
    ),
    Rule(
        ("engine", "args"),
        Shape.WORDS,
        Setting.ENGINE_ARGS,
        "a tenant may use the options that only tune an engine, some only with certain values and written "
        "--option=value (docs/security.md lists them)",
        _word,
        f"!item.startsWith('-') || item.matches('^{_NUMBER.pattern}$') || "
        f"item.split('=', 2)[0].split(' ', 2)[0] in variables.{allowed_variable(Setting.ENGINE_ARGS)} || "
        f"item in variables.{allowed_variable(Setting.ENGINE_ARGS)}",
    ),
    Rule(
        ("engine", "env"),
        Shape.LIST,
        Setting.ENV,
        "a tenant may use the variables that only tune an engine (docs/security.md lists them), with a value or "
        f"valueFrom {', '.join(_SOURCES)}",
        _variable,
        f"{cel_matches('item.name', Setting.ENV)} && (!has(item.valueFrom) || {_all('item.valueFrom', 'm', _SOURCES)})",
        "string(item.?name.orValue(''))",
    ),
)

FREE: Mapping[str, str] = {
    "spec.pod.imagePullSecrets": "Secrets of the own namespace",
    "spec.pod.nodeSelector": "it only narrows where a pod may run; taints keep nodes apart",
    "spec.pod.topologySpreadConstraints": "they count pods of the own namespace only",
    "spec.engine.version": "it selects a tag of the image",
    "spec.engine.kvCacheType": "it has three values",
    "spec.engine.toolCallParser": "one of the names that this version of SGLang has",
    "spec.engine.reasoningParser": "one of the names that this version of SGLang has",
    "spec.engine.startupSeconds": "a number",
    "spec.engine.fastStart": "true or false; it only sets options that tune the start",
}
"""The fields without a rule, and why they need none."""
