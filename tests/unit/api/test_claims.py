"""Who holds a served name, from the objects alone."""

from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.api.claims import NameRights, name_problem, served_names
from qwen_operator.api.name_index import Holders, NameIndex, holders
from tests.unit.gateway.objects import asking, deleting, deployment, holding

Manifest = dict[str, Any]
ANY = NameRights()


def holders_of(*deployments: Manifest) -> Holders:
    """The holders, which must be the same for every order of the objects."""
    result = holders(deployments, ANY)
    assert holders(reversed(deployments), ANY).owners == result.owners
    return result


def legacy(manifest: Manifest, *listed: str, generation: int = 1) -> Manifest:
    """The same object with the status of a version that recorded no holders; it was written for generation 1."""
    meta = {**manifest["metadata"], "generation": generation}
    return {**manifest, "metadata": meta, "status": {"observedGeneration": 1, "endpoint": {"names": list(listed)}}}


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
def test_the_names_of_a_deployment(spec: Manifest, names: tuple[str, ...]) -> None:
    assert served_names({"spec": spec}) == names


def test_an_object_without_a_spec_has_no_names() -> None:
    assert served_names({}) == ()


@pytest.mark.parametrize(
    ("name", "problem"),
    [("Qwen/Qwen1.5-7B", None), ("", "empty"), ("base:lora", "colon"), ("a b", "white space"), ("a\x00", "control")],
)
def test_names_that_cannot_be_served(name: str, problem: str | None) -> None:
    text = name_problem(name)
    assert text is None if problem is None else problem in str(text)


def test_an_older_object_that_adds_a_name_does_not_take_it() -> None:
    older = asking(deployment("z", age=9, servedNames=["own"]), servedNames=["own", "m"])
    holder = deployment("a", namespace="other", age=1)
    result = holders_of(older, holder)
    assert result.owners == {"own": ("demo", "z"), "m": ("other", "a")}
    assert result.won == {("demo", "z"): ("own",), ("other", "a"): ("m",)}


def test_a_name_that_nobody_was_granted_has_no_owner() -> None:
    bare = {**deployment("d"), "status": {}}
    assert holders_of(bare, asking(deployment("e", servedNames=["e"]), servedNames=["m"])).owners == {}


def test_of_two_records_the_later_one_is_true_even_for_an_older_object() -> None:
    first = holding(deployment("a", age=9), "2026-01-01T00:10:00Z")
    second = holding(deployment("b", age=1), "2026-01-01T00:20:00Z")
    assert holders_of(first, second).owners == {"m": ("demo", "b")}


@pytest.mark.parametrize("since", ["", "soon", "9999-99-99", "\ud800", "2026-01-01T00:00:00"])
def test_a_time_that_cannot_be_read_still_records_the_holder(since: str) -> None:
    older = asking(deployment("z", age=9, servedNames=["own"]), servedNames=["m"])
    assert holders_of(holding(deployment("a"), since), older).owners["m"] == ("demo", "a")


def test_a_restored_status_of_another_object_is_void() -> None:
    restored = deployment("a", age=9)
    restored["metadata"]["uid"] = "uid-anew"
    assert holders_of(restored).owners == {}
    assert holders_of(restored, deployment("b")).owners == {"m": ("demo", "b")}


def test_a_deployment_that_is_being_deleted_gives_its_names_up() -> None:
    result = holders_of(deleting(deployment("old", age=5)), deployment("new"))
    assert result.owners == {"m": ("demo", "new")}
    assert result.won[next(iter(result.owners.values()))] == ("m",)


def test_a_bad_name_is_refused_and_the_others_are_served() -> None:
    result = holders_of(deployment("d", servedNames=["a:b", "good"]))
    assert list(result.won.values()) == [("good",)]
    assert list(result.refused.values()) == [
        ("the name 'a:b' contains a colon, which separates a model from an adapter",)
    ]


def test_after_an_upgrade_the_present_holders_keep_their_names() -> None:
    old, young = legacy(deployment("old", age=5), "m"), legacy(deployment("young", age=1))
    assert holders_of(old, young).owners == {"m": ("demo", "old")}
    # Both statuses list it while one lags: the old rule decides.
    assert holders_of(old, legacy(deployment("young", age=1), "m")).owners == {"m": ("demo", "old")}
    # A spec that the operator rejected lists no names, and its engines serve nevertheless.
    assert holders_of(legacy(deployment("old", age=5)), legacy(deployment("young"))).owners == {"m": ("demo", "old")}


def test_after_an_upgrade_an_older_object_does_not_take_a_name_by_an_edit() -> None:
    holder = legacy(deployment("young", age=1), "m")
    edited = legacy(deployment("old", age=9), "own", generation=2)
    assert holders_of(holder, edited).owners == {"m": ("demo", "young")}
    # It also does not if the holder's status lists no name, because the operator has not seen the edit.
    assert holders_of(legacy(deployment("young", age=1)), edited).owners == {"m": ("demo", "young")}
    assert holders_of(deployment("young", age=1), legacy(deployment("old", age=9), "m")).owners == {
        "m": ("demo", "young")
    }


@pytest.mark.parametrize(
    ("patterns", "namespace", "name", "allowed"),
    [
        ({}, "a", "x", True),
        ({"a": ("x",)}, "a", "x", True),
        ({"a": ("x",)}, "a", "xy", False),
        ({"a": ("x",)}, "b", "x", False),
        ({"a": ()}, "a", "x", False),
        ({"a": ("x",), "*": ("y",)}, "a", "y", False),
        ({"a": ("x",), "*": ("y",)}, "b", "y", True),
        ({"a": ("team-*",)}, "a", "team-", True),
        ({"a": ("team-*",)}, "a", "my-team-x", False),
        ({"a": ("*/Qwen*-Chat",)}, "a", "org/Qwen1.5-7B-Chat", True),
        ({"a": ("ab*ba",)}, "a", "aba", False),
        ({"a": ("*a*a*",)}, "a", "xaxa", True),
        ({"a": ("*a*a*",)}, "a", "xax", False),
        ({"a": ("x?", "[x]", "X")}, "a", "x", False),
    ],
)
def test_rights(patterns: dict[str, tuple[str, ...]], namespace: str, name: str, allowed: bool) -> None:
    assert NameRights(patterns).allow(namespace, name) is allowed


def test_a_pattern_of_many_stars_takes_no_time() -> None:
    assert not NameRights({"a": ("a*" * 48,)}).allow("a", "a" * 47 + "b")


def _objects() -> st.SearchStrategy[list[Manifest]]:
    """Objects in every state, of which several may record or list one name."""
    names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)
    times = st.sampled_from(["", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"])

    def made(number: int, parts: tuple[list[str], str, str, list[str]]) -> Manifest:
        asked, state, since, listed = parts
        plain = deployment(f"d{number}", age=number, namespace=f"n{number % 2}", servedNames=asked)
        states = {
            "recorded": holding({**plain, "spec": {"servedNames": listed or asked}}, since) | {"spec": plain["spec"]},
            "legacy": legacy(plain, *listed),
            "new": {**plain, "status": {}},
            "deleting": deleting(plain),
        }
        return states[state]

    state = st.sampled_from(["recorded", "legacy", "new", "deleting"])
    parts = st.lists(st.tuples(names, state, times, names), max_size=6)
    return parts.map(lambda all_parts: [made(*one) for one in enumerate(all_parts)])


@given(_objects(), st.randoms(use_true_random=False))
def test_operator_and_agent_have_one_answer_whatever_the_order_of_the_events(
    items: list[Manifest], random: Random
) -> None:
    agent = holders(items, ANY)
    index = NameIndex(ANY, lambda: datetime(2026, 1, 3, tzinfo=UTC))
    events = [*items, *random.sample(items, len(items) // 2)]
    random.shuffle(events)
    for item in events:
        index.put((item["metadata"]["namespace"], item["metadata"]["name"]), item if random.random() < 0.8 else None)
    for item in items:
        index.put((item["metadata"]["namespace"], item["metadata"]["name"]), item)
    shares = {key: index.share(key) for key in agent.won}
    granted = [one.name for share in shares.values() for one in share.held]
    assert len(granted) == len(set(granted))
    for key, share in shares.items():
        names = tuple(one.name for one in share.held if agent.owners.get(one.name) == key)
        assert names == agent.won[key]
        assert not any(agent.owners.get(one.name, key) != key for one in share.held)


def test_a_right_comes_before_possession() -> None:
    rights = NameRights({"demo": ("own",), "other": ("*",)})
    holder, waiter = deployment("a", age=9), deployment("b", namespace="other")
    assert holders([holder], rights).owners == {}
    assert holders([holder, waiter], rights).owners == {"m": ("other", "b")}


def test_a_name_that_is_being_granted_stays_with_its_object_while_that_is_edited() -> None:
    """The operator writes the grant into the status. An edit may come before the status that says so."""
    index = NameIndex(ANY, lambda: datetime(2026, 1, 3, tzinfo=UTC))
    first, older = ({**deployment(name, age=age), "status": {}} for name, age in (("first", 1), ("older", 9)))
    index.put(("demo", "first"), first)
    assert [one.name for one in index.share(("demo", "first")).held] == ["m"]
    index.put(("demo", "older"), older)
    index.put(("demo", "first"), asking(first, servedNames=["m", "n"]))
    assert index.share(("demo", "older")).held == ()
    assert [one.name for one in index.share(("demo", "first")).held] == ["m", "n"]
    # Once it no longer asks, the name is free.
    index.put(("demo", "first"), asking(first, servedNames=["n"]))
    assert [one.name for one in index.share(("demo", "older")).held] == ["m"]
