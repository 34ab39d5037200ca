"""Random stories of rollouts: pods come up, fail and recover in any order, and people change their minds.

Whatever happens, the operator itself takes no more replicas away than `maxUnavailable` allows, starts no more than
`maxSurge` allows, and ends with what was asked for when all pods are well.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_operator.api.spec import revision_hash
from qwen_operator.kube import PODS, QWENDEPLOYMENTS, Manifest
from tests.unit.fakes import Write
from tests.unit.replicas.test_holding import crashed, loading, revision_of
from tests.unit.replicas.test_rollouts import READY, SINCE, serves
from tests.unit.world import World, deployment, ready_status

STORIES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TOKENS = (1024, 2048, 4096)


class Broken(BaseException):
    """A promise is broken. Not an Exception: the worker survives those."""


@dataclass(frozen=True)
class Limits:
    surge: int
    unavailable: int


LIMITS = st.builds(Limits, st.integers(0, 3), st.integers(0, 3)).filter(lambda it: it.surge + it.unavailable > 0)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("well"), st.integers(0, 9)),
        st.tuples(st.just("fails"), st.integers(0, 9)),
        st.tuples(st.just("dips"), st.integers(0, 9)),
        st.tuples(st.just("busy"), st.integers(0, 9)),
        st.tuples(st.just("lost"), st.integers(0, 9)),
        st.tuples(st.just("spec"), st.sampled_from(TOKENS)),
        st.tuples(st.just("replicas"), st.integers(1, 4)),
        st.tuples(st.just("wait"), st.integers(1, 30)),
    ),
    max_size=25,
)


class Story:
    """A deployment that serves. A new pod loads until the story says how it goes on."""

    def __init__(self, world: World, limits: Limits) -> None:
        self.world, self.limits = world, limits
        self.fates: dict[str, Manifest] = {}
        self.usual = ready_status({})
        self.serving = 0
        world.kubelet.place = True
        world.kubelet.engine = lambda pod: self.fates.get(pod["metadata"]["uid"], self.usual)

    async def begin(self, replicas: int) -> None:
        rollout = {
            "maxSurge": self.limits.surge,
            "maxUnavailable": self.limits.unavailable,
            "progressDeadlineSeconds": 20,
            "drainSeconds": 15,
        }
        self.world.api.put(QWENDEPLOYMENTS, deployment(replicas=replicas, contextTokens=TOKENS[0], rollout=rollout))
        await self.world.settle()
        for pod in self.world.api.all(PODS):
            self.fates[pod["metadata"]["uid"]] = ready_status(pod)
        self.usual = loading()
        self.world.api.before, self.world.api.after = self._before, self._after

    @property
    def pods(self) -> list[Manifest]:
        return [pod for pod in self.world.api.all(PODS) if "deletionTimestamp" not in pod["metadata"]]

    @property
    def wanted(self) -> int:
        return int(self.world.qd()["spec"]["replicas"])

    def _before(self, _number: int, _write: Write) -> None:
        self.serving = sum(serves(pod) for pod in self.pods)

    def _after(self, _number: int, write: Write) -> None:
        serving = sum(serves(pod) for pod in self.pods)
        if serving < self.serving and serving < self.wanted - self.limits.unavailable:
            raise Broken(f"{write} leaves {serving} of {self.wanted} replicas")
        if write.verb == "create" and write.resource == PODS and self._there() > self.wanted + self.limits.surge:
            raise Broken(f"{write} makes {self._there()} replicas of {self.wanted}")

    def _there(self) -> int:
        """The replicas that count. Those of another revision that do not answer go in the same step. Without a surge,
        those of another revision that drain still have the GPUs."""
        present = revision_hash(self.world.qd()["spec"], {})
        mine = [pod for pod in self.pods if revision_of(pod) == present and SINCE not in pod["metadata"]["annotations"]]
        others = [
            pod
            for pod in self.pods
            if revision_of(pod) != present and READY in pod["status"].get("conditions", [])
            if not self.limits.surge or SINCE not in pod["metadata"]["annotations"]
        ]
        return len(mine) + len(others)

    async def step(self, deed: str, value: int) -> None:
        api = self.world.api
        if deed == "wait":
            await self.world.wait(value)
        elif deed == "spec":
            api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(contextTokens=value))
        elif deed == "replicas":
            api.edit(QWENDEPLOYMENTS, "chat", lambda item: item["spec"].update(replicas=value))
        elif pods := self.pods:
            pod = pods[value % len(pods)]
            self._befalls(deed, pod)
        await self.world.wait(1)

    def _befalls(self, deed: str, pod: Manifest) -> None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        if deed == "lost":
            self.world.api.remove(pod, PODS)
        elif deed == "busy":
            self.world.busy ^= {name}
        else:
            dip = loading()
            dip["containerStatuses"][0]["started"] = True
            self.fates[uid] = {"well": ready_status(pod), "fails": crashed(3), "dips": dip}[deed]

    async def end(self) -> None:
        """From here on all is well."""
        self.usual = ready_status({})
        self.fates.clear()
        self.world.busy.clear()
        self.world.operator.intake.enqueue_all()
        await self.world.settle(600)


async def _told(replicas: int, limits: Limits, steps: list[tuple[str, int]]) -> Story:
    story = Story(await World().start(), limits)
    await story.begin(replicas)
    for deed, value in steps:
        await story.step(deed, value)
    await story.end()
    return story


@STORIES
@given(st.integers(1, 4), LIMITS, STEPS)
def test_every_story_keeps_the_limits_and_ends_well(replicas: int, limits: Limits, steps: list[Any]) -> None:
    story = asyncio.run(_told(replicas, limits, steps))
    world, present = story.world, revision_hash(story.world.qd()["spec"], {})

    assert [revision_of(pod) for pod in story.pods] == [present] * story.wanted
    assert all(serves(pod) for pod in story.pods)
    assert not {"Stalled", "Reconciling", "Degraded"} & set(world.conditions())
    assert world.qd()["status"]["summary"]["ready"] == f"{story.wanted}/{story.wanted}"
    assert world.operator.outcomes["crash"] == 0
