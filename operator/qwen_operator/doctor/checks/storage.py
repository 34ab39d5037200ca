"""The default StorageClass. Only claims for weights need one."""

from collections.abc import Iterator

from qwen_operator import objects
from qwen_operator.doctor.types import ClusterFacts, Finding, Mark

NAME = "storage"
_DEFAULT = "storageclass.kubernetes.io/is-default-class"
_PATCH = f"""kubectl annotate storageclass NAME {_DEFAULT}="""


def check(facts: ClusterFacts) -> Iterator[Finding]:
    if facts.storage_classes.problem:
        yield Finding(Mark.UNKNOWN, NAME, f"not checked: {facts.storage_classes.problem}")
        return
    classes = facts.storage_classes.items
    names = [
        objects.text(one, "metadata", "name") for one in classes if objects.annotations(one).get(_DEFAULT) == "true"
    ]
    if len(names) == 1:
        yield Finding(Mark.OK, NAME, f"the default StorageClass is {names[0]}")
    elif names:
        yield Finding(
            Mark.WARNING,
            NAME,
            f"{', '.join(sorted(names))} are all default StorageClasses, and Kubernetes takes the newest: keep one, "
            f"and for the others run {_PATCH}false --overwrite",
        )
    elif classes:
        yield Finding(
            Mark.WARNING,
            NAME,
            "no StorageClass is the default, so a claim for weights without storageClassName stays unbound: name a "
            f"class in the claim, or run {_PATCH}true",
        )
    else:
        yield Finding(
            Mark.WARNING,
            NAME,
            "the cluster has no StorageClass, so a claim for weights binds only to a volume that exists: install a "
            "provisioner, or create the PersistentVolume yourself; models from a hub need no claim",
        )
