"""A model in an image, from the tag in the spec to the digest in the engine's pod."""

from __future__ import annotations

from qwen_operator.kube import CONTROLLER_REVISIONS, PODS, QWENDEPLOYMENTS, Manifest
from tests.unit.world import World, change, deployment

REPOSITORY = "ghcr.io/team/qwen"
FIRST, SECOND = "a" * 64, "b" * 64
UNMOUNTED = 'failed to apply OCI options: failed to mkdir "": mkdir : no such file or directory'


class Registry:
    """What the tag stands for, as nodes report it."""

    digest = FIRST

    def inspected(self, world: World, pod: Manifest) -> Manifest:
        status = world.kubelet.inspected(pod)
        image = {
            "name": "image",
            "imageID": f"{REPOSITORY}@sha256:{self.digest}",
            "state": {"terminated": {"reason": "StartError", "exitCode": 128}},
        }
        return status | {"phase": "Failed", "containerStatuses": [*status["containerStatuses"], image]}


async def _world(registry: Registry, tag: str = "7b") -> World:
    world = await World().start()
    world.kubelet.inspection = lambda pod: registry.inspected(world, pod)
    world.api.put(QWENDEPLOYMENTS, deployment(model="chat", source={"uri": f"oci://{REPOSITORY}:{tag}/models"}))
    await world.settle(60)
    return world


def _mounted(world: World) -> set[str]:
    return {volume["image"]["reference"] for pod in world.api.all(PODS) for volume in pod["spec"]["volumes"][-1:]}


async def test_a_tag_is_resolved_once_and_all_replicas_mount_its_digest() -> None:
    registry = Registry()
    world = await _world(registry)
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert world.qd()["status"]["model"]["commit"] == FIRST
    registry.digest = SECOND
    change(world, replicas=3)
    await world.settle(60)
    assert len(world.names()) == 3
    assert _mounted(world) == {f"{REPOSITORY}@sha256:{FIRST}"}
    await world.restart()
    await world.settle(60)
    assert _mounted(world) == {f"{REPOSITORY}@sha256:{FIRST}"}


async def test_the_annotation_asks_what_the_tag_stands_for_now() -> None:
    registry = Registry()
    world = await _world(registry)
    registry.digest = SECOND
    world.api.edit(
        QWENDEPLOYMENTS, "chat", lambda item: item["metadata"].update(annotations={"qwen-operator.dev/replan": "2"})
    )
    await world.settle(300)
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert _mounted(world) == {f"{REPOSITORY}@sha256:{SECOND}"}
    assert world.qd()["status"]["model"]["commit"] == SECOND


async def test_a_node_that_cannot_mount_images_is_told_and_goes_on_once_it_can() -> None:
    registry = Registry()
    world = await World().start()
    waiting = {"reason": "CreateContainerError", "message": UNMOUNTED}
    stuck = {"phase": "Pending", "containerStatuses": [{"name": "inspection", "state": {"waiting": waiting}}]}
    world.kubelet.inspection = lambda _pod: stuck
    world.api.put(QWENDEPLOYMENTS, deployment(model="chat", source={"uri": f"oci://{REPOSITORY}:7b"}))
    await world.settle(60)
    assert world.conditions()["Ready"] == ("False", "ImageVolumesUnsupported")
    assert "cannot mount the image" in world.message("Ready")
    assert [name for name in world.names() if not name.endswith("-inspect")] == []
    assert world.api.all(CONTROLLER_REVISIONS) == []
    world.kubelet.inspection = lambda pod: registry.inspected(world, pod)
    await world.settle(60)
    assert world.conditions()["Ready"] == ("True", "Serving")
