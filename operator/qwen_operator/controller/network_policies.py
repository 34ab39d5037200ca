"""Keeps one NetworkPolicy in every namespace with QwenDeployments, so that only allowed peers reach the engines.

Each replica over several nodes gets another one, by which its pods reach each other.

It runs beside the reconcile loop and never holds a pod back. A policy that cannot be written must not stop a model:
engines refuse administrative requests from other pods by themselves (`qwen_runtime.guard`), and a network plugin
applies a policy some time after it was written in any case.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from qwen_operator import objects
from qwen_operator.config.types import NetworkPolicyConfig
from qwen_operator.controller.cache import Store
from qwen_operator.controller.resync import CHILD_LABELS
from qwen_operator.kube import (
    NETWORK_POLICIES,
    PODS,
    QWENDEPLOYMENTS,
    AlreadyExists,
    ApiError,
    Conflict,
    DeleteOptions,
    Forbidden,
    KubeApi,
    Manifest,
    NamespaceTerminating,
    NotFound,
)
from qwen_operator.kube.mirror import OnChange, mirror
from qwen_operator.manifests.names import LABEL_DEPLOYMENT, LABEL_REPLICA, LABEL_ROLE, ROLE_ENGINE
from qwen_operator.manifests.network import CLOSED_ROLES, engine_policy, group_policy
from qwen_operator.manifests.ownership import is_marked_child
from qwen_operator.objects import ObjectKey, key_of

STEP_SECONDS = 2.0
# An API server that refuses a policy (a quota, an admission policy, a missing right) is asked again after this time.
REFUSED_SECONDS = 60.0
FORBIDDEN_SECONDS = 300.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class NetworkPolicies:
    """The policies of this release. `clock` returns monotonic seconds.

    `_written`: for each namespace the last intended spec, and the spec in the API server's answer. They differ if the
    API server adds defaults, and then the answer is no drift.
    """

    api: KubeApi
    store: Store
    config: NetworkPolicyConfig
    namespaces: tuple[str, ...]
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _seen: dict[str | None, dict[ObjectKey, Manifest]] = field(default_factory=dict)
    _written: dict[str, tuple[Manifest, Manifest]] = field(default_factory=dict)
    _refused: dict[str, tuple[float, str]] = field(default_factory=dict)
    _unreadable: set[str | None] = field(default_factory=set)

    def parts(self) -> list[Coroutine[Any, Any, NoReturn]]:
        """What must run at the same time, for ever. Nothing if the release has no policies."""
        if not self.config.name:
            return []
        return [*(self._follow(scope) for scope in self._scopes), self._repair()]

    @property
    def _scopes(self) -> tuple[str | None, ...]:
        return self.namespaces or (None,)

    def _scope(self, namespace: str) -> str | None:
        """The scope that lists the policies of a namespace."""
        return namespace if self.namespaces else None

    async def _follow(self, scope: str | None) -> NoReturn:
        """Mirror the policies of one namespace, or of all of them."""
        while not await self._readable(scope):
            await self.sleep(FORBIDDEN_SECONDS)
        await mirror(self.api, NETWORK_POLICIES, scope, CHILD_LABELS, self.listener(scope))

    async def _repair(self) -> NoReturn:
        while True:
            await self.step()
            await self.sleep(STEP_SECONDS)

    def listener(self, scope: str | None) -> OnChange:
        """The callback for the mirror of one namespace, or of all of them."""

        def on_change(policies: Mapping[ObjectKey, Manifest]) -> None:
            self._seen[scope] = dict(policies)

        return on_change

    async def step(self) -> None:
        """Compare every namespace whose policies were listed, and write what differs.

        A policy that no list showed yet would look absent. And where QwenDeployments or pods cannot be read, there may
        be some that need the policy.
        """
        deployed = {item["metadata"]["namespace"] for item in self.store.all(QWENDEPLOYMENTS)}
        present = {key[0]: item for seen in self._seen.values() for key, item in seen.items() if self._ours(item)}
        serving = deployed | _namespaces_with_pods(self.store)
        for namespace in sorted(deployed | present.keys()):
            if self._scope(namespace) not in self._seen or namespace in self.store.unreadable:
                continue
            refused_at, _ = self._refused.get(namespace, (0.0, ""))
            if namespace in self._refused and self.clock() - refused_at < REFUSED_SECONDS:
                continue
            wanted = self.config.enabled and namespace in serving
            await self._attempt(namespace, present.get(namespace), wanted=wanted)
        for leader in self._leaders() if self.config.enabled else ():
            await self._open(leader)

    def _leaders(self) -> list[Manifest]:
        """The first pods of replicas over several nodes in namespaces whose policies are known."""
        deployments = {key_of(item): item for item in self.store.all(QWENDEPLOYMENTS)}
        leaders = []
        for pod in self.store.all(PODS):
            namespace, labels = objects.text(pod, "metadata", "namespace"), objects.labels(pod)
            owner = deployments.get((namespace, str(labels.get(LABEL_DEPLOYMENT))))
            leads = LABEL_REPLICA in labels and labels.get(LABEL_ROLE) == ROLE_ENGINE and not objects.is_deleting(pod)
            known = self._scope(namespace) in self._seen and namespace not in {*self.store.unreadable, *self._refused}
            if leads and known and owner is not None and is_marked_child(pod, owner):
                leaders.append(pod)
        return leaders

    async def _open(self, leader: Manifest) -> None:
        """Let the pods of a replica reach each other. Its policy ends with its first pod."""
        namespace = objects.text(leader, "metadata", "namespace")
        policy = group_policy(leader, self.config.name, self.config.ingress)
        name = policy["metadata"]["name"]
        if (namespace, name) in self._seen[self._scope(namespace)]:
            return
        try:
            self._store(await self.api.create(NETWORK_POLICIES, policy))
            self._log("create", namespace, "the pods of a replica must reach each other", name)
        except (AlreadyExists, NamespaceTerminating, NotFound):
            self._store(policy)
        except ApiError as error:
            self._report(namespace, error)

    async def _attempt(self, namespace: str, present: Manifest | None, *, wanted: bool) -> None:
        try:
            if wanted:
                await self._ensure(namespace, present)
            elif present is not None:
                await self._remove(namespace, present)
            self._refused.pop(namespace, None)
        except (NamespaceTerminating, NotFound):
            # Kubernetes deletes the policy with its namespace.
            self._forget(namespace)
        except Conflict:
            # Somebody else wrote at the same time. The watch shows the result.
            return
        except ApiError as error:
            self._report(namespace, error)

    async def _ensure(self, namespace: str, present: Manifest | None) -> None:
        config = self.config
        manifest = engine_policy(namespace, config.name, config.ingress)
        if present is not None and not self._differs(namespace, manifest, present):
            return
        try:
            if present is None:
                answer = await self.api.create(NETWORK_POLICIES, manifest)
                self._log("create", namespace, "the namespace has QwenDeployments")
            else:
                answer = await self.api.replace(NETWORK_POLICIES, _with_version(manifest, present))
                self._log("repair", namespace, "it differs from the release's settings")
        except AlreadyExists:
            # The name is this release's own. A policy that lost its labels is in no list and no watch.
            answer = await self.api.replace(NETWORK_POLICIES, manifest)
            self._log("repair", namespace, "it exists without its labels")
        self._written[namespace] = (manifest["spec"], answer.get("spec", {}))
        self._store(answer)

    async def _remove(self, namespace: str, present: Manifest) -> None:
        options = DeleteOptions(objects.text(present, "metadata", "uid"))
        await self.api.delete(NETWORK_POLICIES, namespace, self.config.name, options)
        self._log("delete", namespace, "no QwenDeployment needs it")
        self._forget(namespace)

    def _differs(self, namespace: str, wanted: Manifest, present: Manifest) -> bool:
        if {**objects.labels(present), **wanted["metadata"]["labels"]} != objects.labels(present):
            return True
        intended, answered = self._written.get(namespace, (None, None))
        spec = present.get("spec")
        return spec != wanted["spec"] and not (intended == wanted["spec"] and answered == spec)

    def _store(self, policy: Manifest) -> None:
        """Keep the answer until the watch shows it, so that the next step does not write again."""
        key = (policy["metadata"]["namespace"], policy["metadata"]["name"])
        self._seen[self._scope(key[0])][key] = policy

    def _forget(self, namespace: str) -> None:
        for seen in self._seen.values():
            seen.pop((namespace, self.config.name), None)
        self._written.pop(namespace, None)
        self._refused.pop(namespace, None)

    def _ours(self, policy: Manifest) -> bool:
        return objects.text(policy, "metadata", "name") == self.config.name

    async def _readable(self, scope: str | None) -> bool:
        """Whether the operator may list policies. Otherwise the mirrors would complain twice a minute."""
        try:
            await self.api.list(NETWORK_POLICIES, scope, CHILD_LABELS)
        except Forbidden as error:
            if scope not in self._unreadable:
                self._unreadable.add(scope)
                log.warning(
                    "the operator may not list NetworkPolicies: other pods can reach the engines",
                    extra={"error": str(error)},
                )
            return False
        except ApiError:
            return True
        return True

    def _report(self, namespace: str, error: ApiError) -> None:
        """Log a refusal once, and again only if the API server gives another reason."""
        _, before = self._refused.get(namespace, (0.0, ""))
        self._refused[namespace] = (self.clock(), error.message)
        if error.message != before:
            log.warning(
                "cannot write the NetworkPolicy of the engines: other pods can reach them",
                extra={"object": f"{namespace}/{self.config.name}", "error": str(error)},
            )

    def _log(self, verb: str, namespace: str, reason: str, name: str = "") -> None:
        where = f"{namespace}/{name or self.config.name}"
        log.info("%s NetworkPolicy", verb, extra={"object": where, "why": reason})


def _namespaces_with_pods(store: Store) -> set[str]:
    return {
        objects.text(pod, "metadata", "namespace")
        for pod in store.all(PODS)
        if objects.labels(pod).get(LABEL_ROLE) in CLOSED_ROLES
    }


def _with_version(manifest: Manifest, present: Manifest) -> Manifest:
    version = objects.text(present, "metadata", "resourceVersion")
    return {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": version}}
