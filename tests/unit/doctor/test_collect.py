"""The collector against a fake API server: pages, missing rights, time-outs, and no write."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_operator.cli import main as cli
from qwen_operator.cli.settings import chart_settings
from qwen_operator.doctor import checks, collect, needed, reader
from qwen_operator.doctor.collect import Request
from qwen_operator.doctor.reader import Reader
from qwen_operator.doctor.types import Mark
from qwen_operator.kube import NODES, PODS, Forbidden, Manifest, NotFound, Resource
from qwen_operator.kube.client import LIST_CHUNK
from tests.unit.doctor.facts import NOW, named, operator

ROOT = Path(__file__).parents[3]


@dataclass
class FakeSource:
    """Answers by path. A path that is missing is 404, an answer None is 403."""

    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    reviews: list[Manifest] = field(default_factory=list)
    tried: list[Manifest] = field(default_factory=list)
    allowed: bool = True

    async def read(self, path: str, query: Mapping[str, str], most_bytes: int) -> bytes:
        self.asked.append((path, dict(query)))
        answer = self.answers.get(path, NotFound(404, "NotFound", f"{path} not found"))
        if answer is None:
            raise Forbidden(403, "Forbidden", "no")
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer = await answer(query)
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    async def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        assert resource.group == "authorization.k8s.io", "only reviews, which are not stored"
        self.reviews.append(manifest)
        return {"status": {"allowed": self.allowed}}

    async def try_create(self, resource: Resource, manifest: Manifest) -> Manifest:
        self.tried.append(manifest)
        raise Forbidden(403, "Forbidden", "exceeded quota: gpus")


def request(*namespaces: str, dry_run: bool = False) -> Request:
    return Request(NOW, "qwen-system", "qwen", namespaces, chart_settings(None), dry_run)


async def test_thousands_of_nodes_come_in_pages_and_are_cut() -> None:
    def node(number: int) -> Manifest:
        status = {"allocatable": {"nvidia.com/gpu": "8"}, "images": ["x" * 1000]}
        return named(f"n{number}", labels={"a": "b"}, status=status)

    async def pages(query: Mapping[str, str]) -> Manifest:
        at = int(query.get("continue", "0"))
        after = at + int(query["limit"])
        rest = str(after) if after < 5000 else ""
        return {"items": [node(one) for one in range(at, after)], "metadata": {"continue": rest}}

    source = FakeSource({NODES.path(None): pages})
    facts = await collect.cluster(Reader(source), request())
    assert len(facts.nodes.items) == 5000
    assert len([1 for path, _ in source.asked if path == NODES.path(None)]) == 5000 // LIST_CHUNK
    assert "images" not in str(facts.nodes.items[0])


async def test_an_empty_cluster_gives_findings() -> None:
    facts = await collect.cluster(Reader(FakeSource({"/version": {"gitVersion": "v1.36.0"}})), request("team-a"))
    rows = {(one.mark, one.name) for one in checks.run(facts)}
    assert (Mark.OK, "kubernetes") in rows
    assert (Mark.WARNING, "operator") in rows
    assert (Mark.BAD, "namespaces") in rows


async def test_missing_rights_are_named_and_nothing_fails() -> None:
    class Closed(FakeSource):
        async def read(self, path: str, query: Mapping[str, str], most_bytes: int) -> bytes:
            raise Forbidden(403, "Forbidden", "no")

        async def create(self, resource: Resource, manifest: Manifest) -> Manifest:
            raise Forbidden(403, "Forbidden", "no")

    rows = checks.run(await collect.cluster(Reader(Closed()), request("team-a")))
    assert not [one for one in rows if one.mark is Mark.BAD]
    text = "\n".join(one.message for one in rows)
    assert "you may not list nodes in" not in text
    for part in (
        "you may not list nodes",
        "you may not list resourcequotas in team-a",
        "get deployments.apps in qwen-system",
    ):
        assert part in text
    assert "please report" not in text


async def test_a_release_is_read_from_its_objects() -> None:
    deployment = operator(watched="team-a,team-b")
    deployment["spec"]["template"]["spec"]["volumes"] = [{"name": "config", "configMap": {"name": "qwen-operator"}}]
    settings = {"image": {"reference": "r/i:1"}, "engine": {"image": "sglang", "version": "0.5.23"}}
    root = "/api/v1/namespaces/qwen-system"
    source = FakeSource(
        {
            "/apis/apps/v1/namespaces/qwen-system/deployments/qwen-operator": deployment,
            f"{root}/configmaps/qwen-operator": {"data": {"config.yaml": yaml.safe_dump(settings)}},
            "/apis/coordination.k8s.io/v1/namespaces/qwen-system/leases/qwen-operator": {
                "spec": {"holderIdentity": "qwen-operator-1_x", "renewTime": NOW}
            },
            f"{root}/pods/qwen-operator-1/log": b'{"message": "started"}\n',
            f"{root}/services/http:qwen-gateway:http/proxy/v1/models": {"data": []},
            "/api/v1/namespaces/team-a": named("team-a"),
            "/api/v1/namespaces/team-b": None,
        }
    )
    facts = await collect.cluster(Reader(source), request(dry_run=True))
    assert [one.name for one in facts.served] == ["team-a", "team-b"]
    assert facts.installation.config is not None
    assert facts.log.text.startswith("{")
    assert facts.gateway.status == 200
    accounts = {one["spec"].get("user", "") for one in source.reviews}
    assert accounts == {"", "system:serviceaccount:qwen-system:qwen-operator"}
    assert {one["kind"] for one in source.tried} == {"Pod"}
    assert "exceeded quota" in str(facts.served[0].tried)


@pytest.mark.parametrize("number", [5, 60])
async def test_the_rights_in_every_watched_namespace_are_asked_for(number: int) -> None:
    names = [f"team-{index}" for index in range(number)]

    class LacksOne(FakeSource):
        async def create(self, resource: Resource, manifest: Manifest) -> Manifest:
            answer = await super().create(resource, manifest)
            about = manifest["spec"]["resourceAttributes"]
            lacks = (about["resource"], about["verb"], about.get("namespace")) == ("pods", "create", "team-4")
            return {"status": {"allowed": False}} if lacks else answer

    deployment = operator(watched=",".join(names))
    source = LacksOne({"/apis/apps/v1/namespaces/qwen-system/deployments/qwen-operator": deployment})
    facts = await collect.cluster(Reader(source), request())
    asked = {one["spec"]["resourceAttributes"].get("namespace") for one in source.reviews if "user" in one["spec"]}
    assert asked - {None} == set(names[: collect.MOST_NAMESPACES])
    [finding] = [one.message for one in checks.run(facts) if one.name == "rights" and one.mark is Mark.BAD]
    assert "may not create pods in team-4" in finding
    assert ("in the 50 of 60 namespaces that were checked" in finding) == (number == 60)


async def test_a_read_that_hangs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "SECONDS", 0.05)
    monkeypatch.setattr(reader, "LIST_SECONDS", 0.05)

    async def hang(_query: Mapping[str, str]) -> Manifest:
        await asyncio.sleep(60)
        return {}

    listed = await Reader(FakeSource({PODS.path(None): hang})).listed(PODS)
    assert "no answer within" in listed.problem


@pytest.mark.parametrize("answer", [b"\xff", b"[]", b'{"items": 7}', b'{"items": [1, {}, {"metadata": 3}]}'])
async def test_answers_of_any_form_are_no_error(answer: bytes) -> None:
    listed = await Reader(FakeSource({PODS.path(None): answer})).listed(PODS)
    assert list(listed.items) == []


async def test_one_object_with_its_pods_logs_and_events() -> None:
    pod = named("one-1-0", "team-a", spec={"nodeName": "n1"}, status={
        "containerStatuses": [{"name": "engine", "restartCount": 2}]})  # fmt: skip
    event = {**named("e"), "involvedObject": {"kind": "Pod", "name": "one-0a1b2c3d-9"}, "reason": "Evicted"}
    other = {**named("f"), "involvedObject": {"kind": "QwenDeployment", "name": "other"}, "reason": "Other"}
    source = FakeSource(
        {
            "/apis/qwen-operator.dev/v1alpha1/namespaces/team-a/qwendeployments/one": named("one", "team-a"),
            PODS.path("team-a"): {"items": [pod]},
            "/api/v1/namespaces/team-a/events": {"items": [event, other]},
            PODS.path("team-a", "one-1-0", "log"): b"last line\n",
            "/api/v1/nodes/n1": None,
        }
    )
    facts = await collect.deployment(Reader(source), request("team-a"), "one", "0.1.0")
    assert list(facts.logs) == ["log of one-1-0/engine before its last restart", "log of one-1-0/engine"]
    assert [one["reason"] for one in facts.events.items] == ["Evicted"]
    assert facts.nodes.problem == "you may not get nodes"


@pytest.mark.parametrize(
    ("kind", "target", "own"),
    [
        ("QwenDeployment", "chat", True),
        ("QwenDeployment", "chat-large", False),
        ("Pod", "chat-0a1b2c3d-0", True),
        ("Pod", "chat-0a1b2c3d-1-0", True),
        ("Pod", "chat-0a1b2c3d-inspect", True),
        ("Pod", "chat-adopted", True),
        ("Pod", "chat-large-0a1b2c3d-0", False),
        ("Pod", "chat-0a1b2c3d-4e5f6a7b-0", False),
        ("Pod", "chat-11111111-22222222-0", False),
        ("Pod", "chat-large-0a1b2c3d-inspect", False),
        ("Pod", "chatty-0a1b2c3d-0", False),
        ("PodDisruptionBudget", "chat-engine", True),
        ("PodDisruptionBudget", "chat-large-engine", False),
        ("Deployment", "chat", False),
        ("Pod", "chat", False),
    ],
)
async def test_events_of_a_neighbour_whose_name_begins_alike_stay_out(kind: str, target: str, own: bool) -> None:
    event = {**named("e"), "involvedObject": {"kind": kind, "name": target}}
    source = FakeSource(
        {
            "/api/v1/namespaces/team-a/events": {"items": [event]},
            PODS.path("team-a"): {"items": [named("chat-adopted", "team-a")]},
        }
    )
    facts = await collect.deployment(Reader(source), request("team-a"), "chat", "0.1.0")
    assert bool(facts.events.items) is own


def test_the_needed_rights_are_those_of_the_chart() -> None:
    text = (ROOT / "charts/qwen-operator/templates/rbac.yaml").read_text()
    assert _granted(text, "operatorRules") == {name: set(verbs) for name, verbs in needed.OPERATOR.items()}
    assert _granted(text, "nodeRules") == {name: set(verbs) for name, verbs in needed.NODES.items()}


def _granted(text: str, template: str) -> dict[str, set[str]]:
    rules = text.partition(f'define "qwen.{template}" -}}}}')[2].partition("{{- end")[0]
    granted = {}
    for rule in yaml.safe_load(re.sub(r"\{\{.*?\}\}", "named", rules)):
        if "resourceNames" in rule:
            continue  # a review of one name would need the name, and who lacks it lacks the others too
        for resource in rule["resources"]:
            name, slash, subresource = resource.partition("/")
            group = f".{rule['apiGroups'][0]}" if rule["apiGroups"][0] else ""
            granted[f"{name}{group}{slash}{subresource}"] = set(rule["verbs"])
    return granted


def test_a_review_names_resource_group_and_subresource() -> None:
    body = needed.review(("patch", "qwendeployments.qwen-operator.dev/status", "a"), "")
    assert body["spec"] == {
        "resourceAttributes": {
            "verb": "patch", "resource": "qwendeployments", "group": "qwen-operator.dev", "subresource": "status",
            "namespace": "a",
        }
    }  # fmt: skip
    core = needed.review(("get", "pods/log", ""), "system:serviceaccount:a:b")["spec"]
    assert core["resourceAttributes"] == {"verb": "get", "resource": "pods", "subresource": "log"}
    # The groups of a ServiceAccount: a right may be bound to any of them.
    assert core["groups"] == ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]


def test_without_a_cluster_there_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli(["doctor", "--kubeconfig", str(tmp_path / "none")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("qwen-operator doctor: there is no cluster")
    assert output.err.count("\n") == 1
