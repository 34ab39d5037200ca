"""Who owns a client-facing name when several deployments claim it.

One gateway serves all deployments by name, so a name has exactly one owner. The reconciler tells the losers in a
condition, the gateway routes by the same answer: both call `claims`, neither can drift from the other.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class DeploymentKey(NamedTuple):
    """A QwenDeployment; equal to the plain tuple (namespace, name)."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class LostName:
    """A claimed name that belongs to an older claim."""

    name: str
    owner: DeploymentKey


@dataclass(frozen=True, slots=True)
class Claims:
    """The answer for all deployments together. Names keep the order of `servedNames`.

    `refused` holds names that no client can ask for, with the reason; the API refuses them too, so they come from
    objects older than the rule.
    """

    owners: Mapping[str, DeploymentKey]
    won: Mapping[DeploymentKey, tuple[str, ...]]
    lost: Mapping[DeploymentKey, tuple[LostName, ...]]
    refused: Mapping[DeploymentKey, tuple[str, ...]]


def served_names(deployment: Mapping[str, Any]) -> tuple[str, ...]:
    """The names as written: `spec.servedNames` when it has any, else `spec.model`; without repetitions."""
    spec = deployment.get("spec") or {}
    names = spec.get("servedNames") or [spec.get("model")]
    names = names if isinstance(names, list) else []
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))


def name_problem(name: str) -> str | None:
    """Why a name cannot be served, or None. A colon separates a model from an adapter."""
    if not name:
        return "the name is empty"
    if ":" in name:
        return f"the name {name!r} contains a colon, which separates a model from an adapter"
    if any(char.isspace() or not char.isprintable() for char in name):
        return f"the name {name!r} contains white space or a control character"
    return None


def claims(deployments: Iterable[Mapping[str, Any]]) -> Claims:
    """Give every name to its oldest claim: by creationTimestamp, then namespace, then name.

    A deployment that is being deleted claims nothing.
    """
    owners: dict[str, DeploymentKey] = {}
    won: dict[DeploymentKey, tuple[str, ...]] = {}
    lost: dict[DeploymentKey, tuple[LostName, ...]] = {}
    refused: dict[DeploymentKey, tuple[str, ...]] = {}
    for deployment in sorted(deployments, key=_age):
        if deployment["metadata"].get("deletionTimestamp"):
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
    # The API server writes UTC to the second, so that text order is time order. An object without a time is new.
    return deployment["metadata"].get("creationTimestamp") or "9999", _key(deployment)
