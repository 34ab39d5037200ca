"""Manifests as the API server gives them, cut down to what the gateway reads."""

from typing import Any

from qwen_operator.api.claims import served_names
from qwen_operator.manifests.names import Owner, metadata

Manifest = dict[str, Any]


def deployment(name: str, *, namespace: str = "demo", age: int = 0, **spec: Any) -> Manifest:
    """A QwenDeployment of model `m` unless `spec` says otherwise; a greater `age` is an older object.

    It holds its names since it was made.
    """
    created = f"2026-01-01T00:{59 - age:02}:00Z"
    return holding(
        {
            "metadata": {
                "namespace": namespace,
                "name": name,
                "uid": uid_of(namespace, name),
                "creationTimestamp": created,
            },
            "spec": {"model": "m", **spec},
        },
        created,
    )


def uid_of(namespace: str, name: str) -> str:
    return f"uid-{namespace}-{name}"


def holding(manifest: Manifest, since: str) -> Manifest:
    """The same QwenDeployment after the operator granted it all names that it asks for."""
    held = [{"name": name, "since": since} for name in served_names(manifest)]
    return {**manifest, "status": {"names": {"uid": manifest["metadata"]["uid"], "held": held}}}


def asking(manifest: Manifest, **spec: Any) -> Manifest:
    """The same QwenDeployment after an edit of its spec that the operator has not seen yet."""
    return {**manifest, "spec": {**manifest["spec"], **spec}}


def pod(name: str, of: str, address: str = "10.0.0.5", *, namespace: str = "demo", uid: str = "") -> Manifest:
    """A routable engine pod, owned by the QwenDeployment `of` of its namespace."""
    owner = Owner(of, namespace, uid_of(namespace, of))
    labels = {
        "qwen-operator.dev/deployment": of,
        "qwen-operator.dev/role": "engine",
        "qwen-operator.dev/routable": "true",
    }
    return {
        "metadata": {
            **metadata(owner, name, labels),
            "uid": uid or f"uid-{name}",
            "creationTimestamp": "2026-01-01T01:00:00Z",
        },
        "status": {
            "phase": "Running",
            "podIP": address,
            "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}],
        },
    }


def unready(manifest: Manifest) -> Manifest:
    """The same pod, not Ready."""
    return {**manifest, "status": {**manifest["status"], "conditions": [{"type": "Ready", "status": "False"}]}}


def unlabelled(manifest: Manifest) -> Manifest:
    """The same pod without the routable label."""
    labels = {key: value for key, value in manifest["metadata"]["labels"].items() if not key.endswith("/routable")}
    return {**manifest, "metadata": {**manifest["metadata"], "labels": labels}}


def deleting(manifest: Manifest) -> Manifest:
    """The same object with a deletionTimestamp."""
    return {**manifest, "metadata": {**manifest["metadata"], "deletionTimestamp": "2026-01-01T02:00:00Z"}}


def ended(manifest: Manifest) -> Manifest:
    """The same pod after its containers have ended; the API server keeps its last address."""
    return {**manifest, "status": {**manifest["status"], "phase": "Failed", "conditions": []}}


def at(manifest: Manifest, address: str) -> Manifest:
    """The same pod with another address."""
    return {**manifest, "status": {**manifest["status"], "podIP": address}}


def worker(ident: str, url: str = "http://10.0.0.5:8000", status: str = "ready") -> Manifest:
    """A worker in smg's answer to `GET /workers`."""
    return {"id": "0", "url": url, "status": status, "labels": {"smg.ai/discovery-id": ident}}
