"""What support asks for about one QwenDeployment, as one text of bounded size and without credentials. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from qwen_operator import objects
from qwen_operator.doctor import redact
from qwen_operator.doctor.types import NO_PAGE, NOTHING, Listed, Page
from qwen_operator.objects import mapping, members

MOST_BYTES = 1_000_000
_SECTION_BYTES = 120_000
_MOST_PODS = 20
_MOST_EVENTS = 60
_MOST_LINES = 400
_NODE_FACTS = (
    "nvidia.com/",
    "kubernetes.io/arch",
    "node.kubernetes.io/instance-type",
    "cloud.google.com/gke-",
    "topology.kubernetes.io/",
)


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """Everything that was read about one QwenDeployment. `logs` has one page for each title."""

    now: str
    version: str
    name: str
    namespace: str
    deployment: Listed
    pods: Listed = NOTHING
    events: Listed = NOTHING
    revisions: Listed = NOTHING
    nodes: Listed = NOTHING
    logs: Mapping[str, Page] = field(default_factory=dict)
    operator_log: Page = NO_PAGE


def text(facts: ObjectFacts) -> str:
    """The whole text, at most MOST_BYTES in UTF-8."""
    head = f"# qwen-operator {facts.version}: {facts.namespace}/{facts.name}, collected {facts.now}\n"
    note = "# Credentials, prompts and unknown values are replaced by [hidden]. Read this text before you hand it on.\n"
    parts, room = [head, note], MOST_BYTES - len((head + note).encode()) - 2 * _SECTION_BYTES
    for title, body in _sections(facts):
        # To look for credentials takes time, so what has no room is not even read.
        if room < 0:
            return "".join([*parts, f"\n[... {title} and all after it are left out ...]\n"])
        parts.append(f"\n== {title} ==\n{_bounded(body)}")
        room -= len(parts[-1].encode())
    return "".join(parts)


def _sections(facts: ObjectFacts) -> Iterator[tuple[str, str]]:
    deployment = facts.deployment.first
    status = mapping(deployment, "status")
    yield "object", _yaml({key: deployment.get(key) for key in ("metadata", "spec") if key in deployment})
    yield "conditions", "".join(f"{one}\n" for one in _conditions(status))
    plan = mapping(status, "plan") or mapping(status, "noFit")
    steps = plan.get("steps")
    yield "plan", "".join(f"{redact.line(step)}\n" for step in steps) if isinstance(steps, list) else "none\n"
    yield "status", _yaml({key: value for key, value in status.items() if key != "conditions"})
    yield "events", _listed(facts.events, _events)
    yield "pods", _listed(facts.pods, _pods)
    yield "revisions", _listed(facts.revisions, _revisions)
    yield "nodes", _listed(facts.nodes, _nodes)
    about = re.compile(rf"(?<![\w.-]){re.escape(f'{facts.namespace}/{facts.name}')}(?![\w.-])")
    operator = [line for line in facts.operator_log.text.splitlines() if about.search(line)]
    yield "operator's log", facts.operator_log.problem or _lines("\n".join(operator))
    for title, page in facts.logs.items():
        yield title, _log(page)


def _conditions(status: objects.Object) -> Iterator[str]:
    for one in members(status, "conditions"):
        state = " ".join(redact.line(one.get(key, "")) for key in ("type", "status", "reason"))
        yield f"{state} since {redact.line(one.get('lastTransitionTime', '?'))}: {redact.line(one.get('message', ''))}"


def _events(items: Sequence[objects.Object]) -> Iterator[str]:
    ordered = sorted(items, key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or ""))
    for one in ordered[-_MOST_EVENTS:]:
        when = one.get("lastTimestamp") or one.get("eventTime") or "?"
        target = f"{objects.text(one, 'involvedObject', 'kind')}/{objects.text(one, 'involvedObject', 'name')}"
        yield redact.line(
            f"{when} {one.get('type')} {one.get('reason')} {target} x{one.get('count') or 1}: {one.get('message')}"
        )


def _pods(items: Sequence[objects.Object]) -> Iterator[str]:
    for pod in items[:_MOST_PODS]:
        yield _yaml({"name": objects.text(pod, "metadata", "name"), "labels": objects.labels(pod),
                     "annotations": objects.annotations(pod), "spec": mapping(pod, "spec"),
                     "status": mapping(pod, "status")})  # fmt: skip
        yield "---"


def _revisions(items: Sequence[objects.Object]) -> Iterator[str]:
    for one in sorted(items, key=lambda item: str(item.get("revision"))):
        yield redact.line(f"{objects.text(one, 'metadata', 'name')} revision {one.get('revision')}")


def _nodes(items: Sequence[objects.Object]) -> Iterator[str]:
    for node in items:
        labels = {key: value for key, value in objects.labels(node).items() if str(key).startswith(_NODE_FACTS)}
        conditions = {
            str(one.get("type")): f"{one.get('status')} {one.get('reason')}"
            for one in members(node, "status", "conditions")
        }
        yield _yaml({"name": objects.text(node, "metadata", "name"), "labels": labels,
                     "taints": mapping(node, "spec").get("taints", []),
                     "allocatable": mapping(node, "status", "allocatable"),
                     "capacity": mapping(node, "status", "capacity"), "conditions": conditions})  # fmt: skip


def _listed(listed: Listed, lines: Any) -> str:
    if listed.problem:
        return f"not read: {listed.problem}\n"
    return "".join(f"{line}\n" for line in lines(listed.items)) or "none\n"


def _log(page: Page) -> str:
    return f"not read: {page.problem}\n" if page.problem else _lines(page.text)


def _lines(log: str) -> str:
    lines = redact.without_blocks(log[-_SECTION_BYTES:]).splitlines()[-_MOST_LINES:]
    # The beginning of a cut line may have named what follows as a credential.
    whole = lines[1:] if len(log) > _SECTION_BYTES else lines
    return "".join(f"{redact.log_line(line)}\n" for line in whole) or "empty\n"


def _yaml(value: Any) -> str:
    copied = redact.manifest(value)
    # A round trip through JSON takes away everything that YAML would write with a tag of Python.
    return yaml.safe_dump(json.loads(json.dumps(copied, default=str)), sort_keys=False, allow_unicode=True, width=160)


def _bounded(body: str) -> str:
    """The beginning and the end of a body that is too large."""
    raw = body.encode("utf-8", "replace")
    if len(raw) <= _SECTION_BYTES:
        return body
    cut = f"\n[... {len(raw) - _SECTION_BYTES} bytes left out ...]\n"
    half = (_SECTION_BYTES - len(cut.encode())) // 2
    return raw[:half].decode("utf-8", "ignore") + cut + raw[-half:].decode("utf-8", "ignore")
