"""Which QwenDeployment owns a served name when several claim it.

One gateway serves all deployments by name, so a name has exactly one owner. The reconciler sets a condition on the
losers, and the gateway routes to the owner. Both call `claims`, so they always agree.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from qwen_operator.objects import is_deleting, mapping


class DeploymentKey(NamedTuple):
    """A QwenDeployment; equal to the plain tuple (namespace, name)."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class LostName:
    """A name that the deployment claims, but that an older deployment owns."""

    name: str
    owner: DeploymentKey


@dataclass(frozen=True, slots=True)
class Claims:
    """The owners of all names, and each deployment's share. Names keep the order of `servedNames`.

    `refused` has one sentence for each name that no client can ask for. The API server rejects such names too, so only
    objects that are older than that rule have them.
    """

    owners: Mapping[str, DeploymentKey]
    won: Mapping[DeploymentKey, tuple[str, ...]]
    lost: Mapping[DeploymentKey, tuple[LostName, ...]]
    refused: Mapping[DeploymentKey, tuple[str, ...]]


def served_names(deployment: Mapping[str, Any]) -> tuple[str, ...]:
    """The names as written: `spec.servedNames` if it has any, else `spec.model`. Each name appears once."""
    spec = mapping(deployment, "spec")
    names = spec.get("servedNames") or [spec.get("model")]
    names = names if isinstance(names, list) else []
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))


def name_problem(name: str) -> str | None:
    """Why the gateway cannot serve a name, or None. In a request, a colon separates a model from an adapter."""
    if not name:
        return "the name is empty"
    if ":" in name:
        return f"the name {name!r} contains a colon, which separates a model from an adapter"
    if any(char.isspace() or not char.isprintable() for char in name):
        return f"the name {name!r} contains white space or a control character"
    return None


def claims(deployments: Iterable[Mapping[str, Any]]) -> Claims:
    """Give every name to the oldest deployment that claims it: by creationTimestamp, then namespace, then name.

    A deployment that is being deleted claims nothing.
    """
    owners: dict[str, DeploymentKey] = {}
    won: dict[DeploymentKey, tuple[str, ...]] = {}
    lost: dict[DeploymentKey, tuple[LostName, ...]] = {}
    refused: dict[DeploymentKey, tuple[str, ...]] = {}
    for deployment in sorted(deployments, key=_age):
        if is_deleting(deployment):
            continue
        key = _key(deployment)
        problems = {name: name_problem(name) for name in served_names(deployment)}
        good = [name for name, problem in problems.items() if problem is None]
        for name in good:
            owners.setdefault(name, key)
        won[key] = tuple(name for name in good if owners[name] == key)
        lost[key] = tuple(LostName(name, owners[name]) for name in good if owners[name] != key)
        refused[key] = tuple(problem for problem in problems.values() if problem is not None)
    return Claims(owners, won, lost, refused)


def _key(deployment: Mapping[str, Any]) -> DeploymentKey:
    meta = deployment["metadata"]
    return DeploymentKey(meta.get("namespace", ""), meta["name"])


def _age(deployment: Mapping[str, Any]) -> tuple[str, DeploymentKey]:
    # The API server writes UTC in whole seconds, so the order of the texts is the order in time. An object without a
    # time counts as new.
    return deployment["metadata"].get("creationTimestamp") or "9999", _key(deployment)
