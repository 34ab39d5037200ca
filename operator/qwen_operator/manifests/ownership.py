"""Who owns an object whose name a QwenDeployment needs, or whose label names the QwenDeployment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from qwen_operator import objects
from qwen_operator.manifests.names import ANNOTATION_OWNER_UID, LABEL_DEPLOYMENT, Manifest


class Ownership(StrEnum):
    """OWNED: this deployment controls the object, or the object has its uid in the annotation and no controller.

    LEFTOVER: the object belongs to an earlier deployment of the same name; the garbage collector removes it. Anything
    else is FOREIGN, and the operator never touches it.
    """

    OWNED = "Owned"
    LEFTOVER = "Leftover"
    FOREIGN = "Foreign"


@dataclass(frozen=True, slots=True)
class Children:
    """Objects of one kind that belong to a deployment, or have a name that it needs, by name."""

    owned: Mapping[str, Manifest] = field(default_factory=dict)
    leftover: Mapping[str, Manifest] = field(default_factory=dict)
    foreign: Mapping[str, Manifest] = field(default_factory=dict)

    def get(self, name: str) -> Manifest | None:
        """The object of this name, whoever owns it."""
        return self.owned.get(name) or self.leftover.get(name) or self.foreign.get(name)

    def __contains__(self, name: str) -> bool:
        """Whether any of the objects has this name."""
        return name in self.owned or name in self.leftover or name in self.foreign


def children(items: Iterable[Manifest], deployment: Manifest) -> Children:
    """The objects sorted by ownership."""
    owned: dict[str, Manifest] = {}
    leftover: dict[str, Manifest] = {}
    foreign: dict[str, Manifest] = {}
    places = {Ownership.OWNED: owned, Ownership.LEFTOVER: leftover, Ownership.FOREIGN: foreign}
    for item in items:
        places[ownership(item, deployment)][item["metadata"]["name"]] = item
    return Children(owned, leftover, foreign)


def is_former(child: Manifest, deployment: Manifest) -> bool:
    """Whether an earlier QwenDeployment of the same name made this object, and nothing controls it now."""
    marked = objects.annotations(child).get(ANNOTATION_OWNER_UID) not in (None, deployment["metadata"]["uid"])
    named = objects.labels(child).get(LABEL_DEPLOYMENT) == deployment["metadata"]["name"]
    return marked and named and not any(owner.get("controller") for owner in objects.owner_references(child))


def is_marked_child(child: Mapping[str, Any], deployment: Mapping[str, Any]) -> bool:
    """Whether the child names this very object both as its controller and in the annotation with the owner's uid."""
    uid = objects.text(deployment, "metadata", "uid")
    controllers = [owner.get("uid") for owner in objects.owner_references(child) if owner.get("controller") is True]
    marked = objects.annotations(child).get(ANNOTATION_OWNER_UID) == uid
    return uid != "" and marked and controllers == [uid]


def ownership(child: Mapping[str, Any], deployment: Mapping[str, Any]) -> Ownership:
    """The ownership of one object."""
    uid, name = deployment["metadata"]["uid"], deployment["metadata"]["name"]
    controller = next((owner for owner in objects.owner_references(child) if owner.get("controller")), None)
    if controller is None:
        marked = objects.annotations(child).get(ANNOTATION_OWNER_UID) == uid
        return Ownership.OWNED if marked else Ownership.FOREIGN
    if controller.get("uid") == uid:
        return Ownership.OWNED
    predecessor = controller.get("kind") == "QwenDeployment" and controller.get("name") == name
    return Ownership.LEFTOVER if predecessor else Ownership.FOREIGN
