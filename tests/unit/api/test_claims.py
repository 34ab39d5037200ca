from typing import Any

import pytest

from qwen_operator.api.claims import DeploymentKey, LostName, claims, name_problem, served_names
from tests.unit.gateway.objects import deleting, deployment


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ({"model": "Qwen/Qwen1.5-7B-Chat"}, ("Qwen/Qwen1.5-7B-Chat",)),
        ({"model": "m", "servedNames": []}, ("m",)),
        ({"model": "m", "servedNames": ["b", "a", "b"]}, ("b", "a")),
        ({"model": None}, ()),
        ({"servedNames": ["a", 3, None]}, ("a",)),
    ],
)
def test_the_names_of_a_deployment(spec: dict[str, Any], names: tuple[str, ...]) -> None:
    assert served_names({"spec": spec}) == names


def test_an_object_without_a_spec_has_no_names() -> None:
    assert served_names({}) == ()


@pytest.mark.parametrize(
    ("name", "problem"),
    [("Qwen/Qwen1.5-7B", None), ("", "empty"), ("base:lora", "colon"), ("a b", "white space"), ("a\x00", "control")],
)
def test_names_that_cannot_be_served(name: str, problem: str | None) -> None:
    found = name_problem(name)
    assert found is None if problem is None else problem in str(found)


def test_a_name_belongs_to_its_oldest_claim_whatever_the_order() -> None:
    old = deployment("z", age=5, servedNames=["shared", "own"])
    young = deployment("a", age=1, servedNames=["mine", "shared"])
    for order in ([old, young], [young, old]):
        found = claims(order)
        assert found.owners == {"shared": ("demo", "z"), "own": ("demo", "z"), "mine": ("demo", "a")}
        assert found.won == {("demo", "z"): ("shared", "own"), ("demo", "a"): ("mine",)}
        assert found.lost[DeploymentKey("demo", "a")] == (LostName("shared", DeploymentKey("demo", "z")),)
        assert found.lost[DeploymentKey("demo", "z")] == ()


def test_claims_of_the_same_second_go_by_namespace_then_name() -> None:
    found = claims([deployment("a", namespace="n2"), deployment("c", namespace="n1"), deployment("b", namespace="n1")])
    assert str(found.owners["m"]) == "n1/b"


def test_an_object_without_a_creation_time_is_the_youngest() -> None:
    new = deployment("a")
    del new["metadata"]["creationTimestamp"]
    assert claims([new, deployment("z")]).owners["m"].name == "z"


def test_a_deployment_that_is_being_deleted_gives_its_names_up() -> None:
    found = claims([deleting(deployment("old", age=5)), deployment("new")])
    assert found.owners == {"m": ("demo", "new")}
    assert ("demo", "old") not in found.won


def test_a_bad_name_is_refused_and_the_others_are_served() -> None:
    found = claims([deployment("d", servedNames=["a:b", "good"])])
    assert found.won == {("demo", "d"): ("good",)}
    assert found.refused[DeploymentKey("demo", "d")] == (
        "the name 'a:b' contains a colon, which separates a model from an adapter",
    )
