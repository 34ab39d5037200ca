"""Which adapters of a served name clients may ask for. Pure.

SGLang answers a request for an adapter that it does not have with an error, and loads one again that was unloaded. So
the proxy lets a request for MODEL:ADAPTER pass only if the spec has the adapter, and every replica that the router may
choose has loaded it. An adapter that the spec does not have any more is unknown at once.

The proxy refuses SGLang's own field for an adapter if a name is here, so a name stays as long as any replica has one.
"""

from __future__ import annotations

from collections.abc import Mapping

from qwen_operator import objects
from qwen_operator.api.adapters import adapter_names
from qwen_operator.api.claims import DeploymentKey
from qwen_operator.manifests.adapters import loaded_names
from qwen_operator.routing.membership import GatewayView, Membership, ready_ids
from qwen_operator.untrusted import decode

_FILE_LEVELS = 8

Adapters = Mapping[str, Mapping[str, bool]]
"""Served name -> adapter -> whether every replica has it. A name whose spec and replicas have none is not in it."""


def loaded_adapters(observed: GatewayView, membership: Membership, before: Adapters) -> Adapters:
    """The adapters of the names of `membership.owners`. Names of which nothing is known keep those of `before`."""
    wanted = {
        DeploymentKey(*objects.key_of(item)): names
        for item in observed.deployments
        if (names := adapter_names(objects.mapping(item, "spec")))
    }
    unread = {entry.name for entry in membership.entries if entry.namespace in observed.unread}
    kept = {name: adapters for name, adapters in before.items() if name in unread}
    had = {objects.text(pod, "metadata", "uid"): loaded_names(pod) for pod in observed.pods}
    used = _used(observed, membership)
    return kept | {
        name: {
            adapter: all(adapter in had.get(uid, ()) for uid in used.get(key, ())) for adapter in wanted.get(key, ())
        }
        for name, key in sorted(membership.owners.items())
        if key in wanted or any(had.get(uid) for uid in used.get(key, ()))
    }


def restore_adapters(content: str) -> Adapters:
    """The adapters in the text of a waiting file; none if the agent did not write it."""
    try:
        names = decode(content, _FILE_LEVELS).get("adapters", {})
        return {
            str(name): {str(adapter): loaded is True for adapter, loaded in adapters.items()}
            for name, adapters in names.items()
        }
    except (ValueError, AttributeError):
        return {}


def _used(observed: GatewayView, membership: Membership) -> dict[DeploymentKey, set[str]]:
    """The uids of the pods that may get requests: those of the file, and those that the router has not dropped yet."""
    used: dict[DeploymentKey, set[str]] = {}
    for entry in membership.entries:
        used.setdefault(entry.owner, set()).add(entry.uid)
    for ident in ready_ids(observed.workers or ()):
        parts = ident.split("/")
        if len(parts) == 5:
            used.setdefault(DeploymentKey(parts[0], parts[1]), set()).add(parts[3])
    return used
