"""Whole stories of a membership, step by step: what is seen, what the file says next."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.api.claims import NameRights
from qwen_operator.routing.membership import Drop, EntryNaming, GatewayView, Membership, advance, restore, spellings
from tests.unit.gateway.objects import (
    Manifest,
    asking,
    at,
    deleting,
    deployment,
    ended,
    holding,
    pod,
    unlabelled,
    unready,
    worker,
)

NAMING = EntryNaming("n")
IN_SMG_ALL: Any = object()


def step(
    deployments: Sequence[Manifest],
    pods: Sequence[Manifest],
    before: Membership | None = None,
    workers: Any = IN_SMG_ALL,
) -> Membership:
    """One step. By default smg reports all that the file had before."""
    before = before or Membership()
    reported = [worker(entry.id, entry.url) for entry in before.entries] if workers is IN_SMG_ALL else workers
    return advance(GatewayView(deployments, pods, reported), before, NAMING)


def lines(membership: Membership) -> list[str]:
    return [f"{entry.name} {entry.pod} {entry.url}" for entry in membership.entries]


def ids(membership: Membership, pod_name: str) -> list[str]:
    return [entry.id for entry in membership.entries if entry.pod == pod_name]


D = deployment("d")
P0, P1 = pod("d-0", "d", "10.0.0.5"), pod("d-1", "d", "10.0.0.6")


def test_the_file() -> None:
    content = json.loads(step([D], [P0]).content())
    assert content == {
        "version": 1,
        "workers": [{"id": "demo/d/d-0/uid-d-0/n-1", "url": "http://10.0.0.5:8000", "model_id": "m"}],
    }


def test_without_deployments_and_pods_the_file_is_empty() -> None:
    assert json.loads(step([], []).content()) == {"version": 1, "workers": []}


def test_pods_of_one_deployment_are_workers_of_one_model_in_a_stable_order() -> None:
    assert step([D], [P1, P0]).content() == step([D], [P0, P1]).content()
    assert {entry.name for entry in step([D], [P0, P1]).entries} == {"m"}


@pytest.mark.parametrize(
    "manifest",
    [
        unready(P0),
        unlabelled(P0),
        deleting(P0),
        ended(P0),
        at(P0, ""),
        pod("x-0", "unknown"),
        {"metadata": {"name": "bare"}},
    ],
    ids=["not ready", "not labelled", "being deleted", "ended", "no address", "of no deployment", "bare"],
)
def test_pods_that_are_no_members(manifest: Manifest) -> None:
    assert step([D], [manifest]).entries == ()


def test_a_name_that_another_one_holds_gets_no_worker() -> None:
    rival = deployment("rival", namespace="other")
    older = asking(deployment("d", age=9, servedNames=["own"]), servedNames=["m"])
    assert step([older, rival], [P0]).entries == ()


def test_a_name_that_the_operator_has_not_granted_yet_gets_no_worker() -> None:
    edited = asking(deployment("d", age=9), servedNames=["m", "new"])
    assert lines(step([edited], [P0])) == ["m d-0 http://10.0.0.5:8000"]
    assert lines(step([holding(edited, "2026-01-01T03:00:00Z")], [P0]))[1:] == ["new d-0 http://10.0.0.5.:8000"]


def test_a_namespace_without_the_right_gets_no_worker() -> None:
    def entries(rights: NameRights) -> int:
        return len(advance(GatewayView([D], [P0], None, rights), Membership(), NAMING).entries)

    assert entries(NameRights({"other": ("*",)})) == 0
    assert entries(NameRights({"demo": ("m*",)})) == 1


CONTROLLER = P0["metadata"]["ownerReferences"][0]
EARLIER = {**CONTROLLER, "uid": "uid-of-an-earlier-d"}
NO_CONTROLLER = {**CONTROLLER, "controller": False}


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"ownerReferences": [], "annotations": {}}, True),
        ({"ownerReferences": []}, False),
        ({"annotations": {}}, False),
        ({"ownerReferences": [EARLIER]}, False),
        ({"ownerReferences": [{**EARLIER, "kind": "ReplicaSet"}]}, True),
        ({"ownerReferences": [NO_CONTROLLER]}, False),
        ({"ownerReferences": [NO_CONTROLLER], "annotations": {}}, True),
    ],
    ids=["labels", "no owner", "no annotation", "leftover", "foreign", "no controller", "neither"],
)
def test_a_pod_with_our_labels_that_the_deployment_does_not_own_gets_no_request(
    changes: Manifest, reported: bool
) -> None:
    forged = {**P0, "metadata": {**P0["metadata"], **changes}}
    without = step([D], [forged, P1])
    assert lines(without) == ["m d-1 http://10.0.0.6:8000"]
    expected = [(Drop.NOT_OWNED, "demo/d-0")] if reported else []
    assert [(drop.reason, drop.subject) for drop in without.dropped] == expected
    # The operator restores the reference of a pod with its annotation.
    assert lines(step([D], [P0, P1], without))[0] == "m d-0 http://10.0.0.5:8000"


def test_the_pods_of_an_earlier_object_of_the_name_get_no_request() -> None:
    anew = {**D, "metadata": {**D["metadata"], "uid": "uid-new"}}
    assert step([holding(anew, "2026-01-01T03:00:00Z")], [P0]).entries == ()


def test_the_id_is_kept_while_the_pod_stays_and_new_when_it_comes_back() -> None:
    first = step([D], [P0])
    again = step([D], [P0], first)
    assert again.content() == first.content()
    gone = step([D], [unready(P0)], again)
    assert gone.entries == ()
    back = step([D], [P0], gone)
    assert ids(back, "d-0") == ["demo/d/d-0/uid-d-0/n-2"]


def test_an_admission_prefers_a_url_that_smg_does_not_know() -> None:
    draining = [worker("old", "http://10.0.0.5:8000", "draining")]
    assert lines(step([D], [P0], workers=draining)) == ["m d-0 http://10.0.0.5.:8000"]
    all_known = [worker(host, f"http://{host}:8000") for host in spellings("10.0.0.5", "demo", "cluster.local")]
    assert lines(step([D], [P0], workers=all_known)) == ["m d-0 http://10.0.0.5:8000"]


def test_several_names_of_one_pod_have_urls_of_their_own_that_stay() -> None:
    two = step([deployment("d", servedNames=["a", "b"])], [P0])
    assert lines(two) == ["a d-0 http://10.0.0.5:8000", "b d-0 http://10.0.0.5.:8000"]
    other = step([deployment("d", servedNames=["c", "b"])], [P0], two)
    assert lines(other) == ["b d-0 http://10.0.0.5.:8000", "c d-0 http://167772165:8000"]
    assert ids(other, "d-0")[0] == ids(two, "d-0")[1]


def test_names_that_the_router_cannot_tell_apart_are_left_out_by_name() -> None:
    many = step([deployment("d", servedNames=list("abcde"))], [P0])
    assert [entry.name for entry in many.entries] == list("abcd")
    assert [(drop.reason, drop.subject) for drop in many.dropped] == [(Drop.TOO_MANY_NAMES, "demo/d")]
    assert "5 names, but the router supports 4 for one deployment: it does not serve e" in many.dropped[0].message


def test_a_bad_entry_is_dropped_and_named_and_the_others_stay() -> None:
    broken = deployment("broken", servedNames=["a:b"])
    membership = step([D, broken], [P0, at(P1, "fe80::zz"), pod("d-2", "d", "fe80::1%eth0")])
    assert lines(membership) == ["m d-0 http://10.0.0.5:8000"]
    assert [(drop.reason, drop.subject) for drop in membership.dropped] == [
        (Drop.INVALID_ADDRESS, "demo/d-1"),
        (Drop.INVALID_ADDRESS, "demo/d-2"),
        (Drop.INVALID_NAME, "demo/broken"),
    ]


def test_one_address_has_one_holder_the_youngest() -> None:
    heir = pod("d-9", "d", "10.0.0.5")
    heir["metadata"]["creationTimestamp"] = "2026-01-02T00:00:00Z"
    for order in ([P0, heir], [heir, P0]):
        membership = step([D], order)
        assert lines(membership) == ["m d-9 http://10.0.0.5:8000"]
        assert [(drop.reason, drop.subject) for drop in membership.dropped] == [(Drop.ADDRESS_TAKEN, "demo/d-0")]


def test_a_pod_that_no_one_routes_to_gives_its_address_up_silently() -> None:
    assert step([D], [P1, deleting(at(P0, "10.0.0.6"))]).dropped == ()


def test_a_pod_with_a_new_address_is_admitted_anew_and_the_old_address_forgotten() -> None:
    moved = step([D], [at(P0, "10.0.0.77")], step([D], [P0]))
    assert lines(moved) == ["m d-0 http://10.0.0.77:8000"]
    assert moved.leaving == frozenset()


@pytest.mark.parametrize("left", [unlabelled(P0), deleting(P0), unready(P0)], ids=["label", "deleting", "unready"])
def test_the_last_worker_stays_until_its_replacement_is_ready(left: Manifest) -> None:
    first = step([D], [P0])
    both = step([D], [left, P1], first)
    assert lines(both) == ["m d-0 http://10.0.0.5:8000", "m d-1 http://10.0.0.6:8000"]
    assert both.leaving == set(ids(both, "d-0"))
    assert both.awaited == set(ids(both, "d-1"))
    not_yet = [worker(ids(both, "d-0")[0]), worker(ids(both, "d-1")[0], status="not_ready")]
    assert step([D], [left, P1], both, not_yet).content() == both.content()
    assert lines(step([D], [left, P1], both)) == ["m d-1 http://10.0.0.6:8000"]


def test_a_worker_that_comes_back_while_it_is_leaving_keeps_its_id() -> None:
    both = step([D], [unlabelled(P0), P1], step([D], [P0]))
    back = step([D], [P0, P1], both)
    assert back.content() == both.content()
    assert back.leaving == frozenset()


def test_without_a_replacement_the_last_worker_leaves() -> None:
    assert step([D], [deleting(P0)], step([D], [P0])).entries == ()


@pytest.mark.parametrize(
    ("deployments", "pods", "workers"),
    [
        ([D], [P1], IN_SMG_ALL),
        ([D], [ended(P0), P1], IN_SMG_ALL),
        ([D], [deleting(P0), P1], []),
        ([D], [deleting(P0), at(P1, "10.0.0.5")], IN_SMG_ALL),
        ([deployment("d", servedNames=["other"])], [deleting(P0), P1], IN_SMG_ALL),
        ([deleting(D), deployment("e")], [P0, pod("e-0", "e", "10.0.0.9")], IN_SMG_ALL),
    ],
    ids=["object gone", "ended", "smg lost it", "address given away", "name given up", "name of another owner"],
)
def test_a_worker_that_cannot_or_must_not_answer_leaves_at_once(
    deployments: Sequence[Manifest], pods: Sequence[Manifest], workers: Any
) -> None:
    after = step(deployments, pods, step([D], [P0]), workers)
    assert not ids(after, "d-0")
    assert after.entries


def test_while_smg_does_not_answer_no_worker_counts_as_ready_and_none_as_lost() -> None:
    first = step([D], [P0])
    blind = step([D], [deleting(P0), P1], first, None)
    assert len(blind.entries) == 2
    assert blind.awaited == set(ids(blind, "d-1"))


def test_a_restarted_agent_goes_on_from_the_file() -> None:
    before = step([deployment("d", servedNames=["a", "b/c"])], [P0, P1])
    restored = restore(before.content())
    assert restored.entries == before.entries
    after = advance(
        GatewayView([deployment("d", servedNames=["a", "b/c"])], [P0, P1], None),
        restored,
        replace(NAMING, nonce="next"),
    )
    assert after.content() == before.content()


SHUT = "shut"
X = deployment("x", namespace=SHUT, servedNames=["other", "more"])


def unread(deployments: Sequence[Manifest], pods: Sequence[Manifest], before: Membership) -> Membership:
    """One step of an agent that was restarted and may not read the namespace of X."""
    return advance(
        GatewayView(deployments, pods, [], unread=frozenset({SHUT})), restore(before.content()), EntryNaming("later")
    )


@pytest.mark.parametrize("address", ["10.0.0.9", "fd00::9"])
def test_workers_of_a_namespace_that_was_never_read_stay(address: str) -> None:
    before = step([D, X], [P0, pod("x-0", "x", address, namespace=SHUT)])
    after = unread([D], [P0], before)
    assert after.content() == before.content()
    assert unread([D], [P0], after).content() == before.content()
    # Of namespaces that can be read, they go as ever.
    assert [entry.pod for entry in unread([D], [], before).entries] == ["x-0", "x-0"]


@pytest.mark.parametrize("address", ["10.0.0.9", "fd00::9"])
@pytest.mark.parametrize("change", [lambda item: item, unready], ids=["ready", "not ready"])
def test_an_address_that_another_pod_has_by_now_gets_no_request_for_the_unread_one(address: str, change: Any) -> None:
    before = step([D, X], [P0, pod("x-0", "x", address, namespace=SHUT)])
    assert {entry.name for entry in before.entries} == {"m", "other", "more"}
    after = unread([D], [P0, change(pod("d-1", "d", address))], before)
    assert {entry.name for entry in after.entries} == {"m"}
    assert json.loads(after.content())["workers"]


def test_a_name_that_another_object_holds_by_now_gets_no_request_for_the_unread_one() -> None:
    before = step([D, X], [P0, pod("x-0", "x", "10.0.0.9", namespace=SHUT)])
    later = deployment("late", servedNames=["other"])
    after = unread([D, later], [P0], before)
    assert [(entry.name, entry.pod) for entry in after.entries] == [("m", "d-0"), ("more", "x-0")]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"workers": [{"id": "x", "url": "u", "model_id": "m"}]}', '{"workers": [3]}', '{"workers": null}'],
)
def test_a_foreign_file_is_an_empty_membership(content: str) -> None:
    assert restore(content) == Membership()


def test_the_urls_of_an_ipv6_pod_are_its_address_and_the_dns_names_of_that() -> None:
    membership = advance(
        GatewayView([deployment("d", servedNames=list("abcd"))], [at(P0, "fd00:0::5")], None),
        Membership(),
        replace(NAMING, cluster_domain="example.org"),
    )
    assert [entry.url for entry in membership.entries] == [
        "http://[fd00::5]:8000",
        "http://fd00--5.demo.pod.example.org:8000",
        "http://fd00--5.demo.pod.example.org.:8000",
        "http://fd00--5.demo.pod:8000",
    ]


STATES = (lambda manifest: manifest, unready, unlabelled, deleting, ended)


@st.composite
def worlds(draw: st.DrawFn) -> GatewayView:
    """Two deployments in two namespaces, of which the second one may be unread."""
    names = st.lists(st.sampled_from(["a", "b", "c", "a:b"]), max_size=4)
    spaces = {"d": "demo"} if draw(st.booleans()) else {"d": "demo", "e": SHUT}
    deployments = [
        deployment(name, namespace=space, age=age, servedNames=draw(names))
        for age, (name, space) in enumerate(spaces.items())
    ]
    addresses = st.sampled_from(["10.0.0.1", "10.0.0.2", "x"])
    pods = [
        draw(st.sampled_from(STATES))(pod(f"{of}-{number}", of, draw(addresses), namespace=space))
        for of, space in spaces.items()
        for number in range(draw(st.integers(0, 2)))
    ]
    return GatewayView(deployments, pods, None, unread=frozenset({SHUT} - set(spaces.values())))


@given(st.lists(st.tuples(worlds(), st.booleans(), st.sets(st.integers(0, 5))), max_size=6))
def test_whatever_happens_smg_accepts_the_file_and_a_quiet_world_a_quiet_file(
    story: Iterable[tuple[GatewayView, bool, set[int]]],
) -> None:
    membership = Membership()
    for world, answers, unready_at in story:
        workers = [
            worker(entry.id, entry.url, "not_ready" if number in unready_at else "ready")
            for number, entry in enumerate(membership.entries)
        ]
        seen = replace(world, workers=workers if answers else None)
        membership = advance(seen, membership, NAMING)
        entries = membership.entries
        assert len({entry.url for entry in entries}) == len({entry.id for entry in entries}) == len(entries)
        assert restore(membership.content()).entries == entries
        assert not any(":" in entry.name for entry in entries)
        assert {entry.name for entry in entries if entry.id in membership.leaving} <= {
            entry.name for entry in entries if entry.id in membership.awaited
        }
        everything = replace(world, workers=[worker(entry.id, entry.url) for entry in entries])
        settled = advance(everything, membership, NAMING)
        assert not settled.awaited
        assert not settled.leaving
        assert advance(everything, settled, NAMING).content() == settled.content()
