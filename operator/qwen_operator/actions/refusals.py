"""What a rejection by the API server means for the user. Pure."""

from __future__ import annotations

import re

from qwen_operator.actions.types import Refusal
from qwen_operator.api.conditions import Reason
from qwen_operator.manifests.model_cache import VOLUME
from qwen_operator.manifests.multi_node import IPC_LOCK

# The API server's words for a ResourceQuota without room, or with a limit that the pod does not state.
_QUOTA = ("exceeded quota", "failed quota")
# The words of the LimitRange admission, which does not name the object.
_LIMIT_RANGE = re.compile(r"(minimum|maximum) \S+ usage per |max limit to request ratio per ")
# The words of the validation of a pod whose request is above a limit. The operator sets no limit unless a spec does.
_ABOVE_LIMIT = re.compile(r"must be less than or equal to (\S+) limit\b")

# The words of the Pod Security admission.
_POD_SECURITY = "violates PodSecurity"
# No spec of a tenant can ask for these.
_MULTI_NODE = ("hostNetwork=true", IPC_LOCK)


def explain(refusal: Refusal) -> tuple[Reason, str]:
    """The reason and the message of a rejected action."""
    what = f"{'the deletion of the' if refusal.deletion else 'the'} {refusal.kind} {refusal.name}"
    text = f"the API server rejects {what}: {refusal.message}"
    if not refusal.answered:
        text = f"the API server gives no answer about {what}, perhaps because of a slow webhook: {refusal.message}"
    if any(words in refusal.message for words in _QUOTA):
        return Reason.QUOTA_EXCEEDED, f"{text}; the operator retries it"
    text += _about_limits(refusal.message)
    if _POD_SECURITY in refusal.message and VOLUME in refusal.message:
        # The cure comes first, because the end of a long message may be cut off.
        text = (
            "the cache is a folder of the nodes, which Pod Security forbids in this namespace: the platform team may "
            "set cache.type to PersistentVolumeClaim or None, or label the namespace with "
            f"pod-security.kubernetes.io/enforce=privileged; {text}"
        )
    elif _POD_SECURITY in refusal.message and any(words in refusal.message for words in _MULTI_NODE):
        text = (
            "the chart gives the pods of replicas over several nodes the network of the host or IPC_LOCK, which Pod "
            "Security forbids in this namespace: the platform team may turn hostNetwork and ipcLock of multiNode off, "
            f"or label the namespace with pod-security.kubernetes.io/enforce=privileged; {text}"
        )
    return Reason.POD_REFUSED, text


def _about_limits(message: str) -> str:
    """The end of a sentence that explains what a LimitRange demands or adds, "" if it is none."""
    if _LIMIT_RANGE.search(message):
        return "; a LimitRange of the namespace demands this: kubectl get limitrange shows it"
    above = _ABOVE_LIMIT.search(message)
    if above is None:
        return ""
    return (
        f"; if spec.pod.resources sets no limit of {above[1]}, a LimitRange of the namespace adds its default: set "
        f"spec.pod.resources.limits.{above[1]}, or raise that default"
    )
