"""Claims that are bound to a folder of the test bed's node: a user's volume of weights without a storage class."""

from pathlib import Path
from typing import Any

Manifest = dict[str, Any]


def claim_manifests(name: str, namespace: str, folder: Path, *, access_mode: str = "ReadOnlyMany") -> list[Manifest]:
    """A PersistentVolume on the node's `folder` and the claim `namespace`/`name` that it is reserved for.

    The volume outlives its claim and keeps the files. Delete it by name (`volume_name`) before you claim it again.
    """
    size = {"storage": "1Gi"}
    volume: Manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume_name(name, namespace)},
        "spec": {
            "capacity": size,
            "accessModes": [access_mode],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name},
            "hostPath": {"path": str(folder), "type": "Directory"},
        },
    }
    claim: Manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": [access_mode],
            "storageClassName": "",
            "volumeName": volume_name(name, namespace),
            "resources": {"requests": size},
        },
    }
    return [volume, claim]


def volume_name(claim: str, namespace: str) -> str:
    """The name of the PersistentVolume of a claim. It contains the namespace, because volumes have none."""
    return f"{namespace}-{claim}"
