"""Models in images: what the pods mount, what the inspection pod shows, and the sentences of what cannot be mounted."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import InvalidSpec, Spec, parse
from qwen_operator.checkpoints.config import from_config
from qwen_operator.hardware.inventory import Inventory
from qwen_operator.manifests.kept import kept_pod
from qwen_operator.manifests.names import Manifest, Owner, PodIdentity
from qwen_operator.manifests.pod_parts import RuntimeImage
from qwen_operator.planning.types import EngineDefaults, ImageVolume
from qwen_operator.sources import image_volumes, registry
from qwen_operator.sources.oci import Image, image_of
from qwen_runtime.inspect_checkpoint import examine
from tests.unit.checkpoints.configs import DENSE

DIGEST = "0123456789abcdef" * 4
REPOSITORY = "registry.example.com:5000/models/qwen"
BY_TAG, BY_DIGEST = f"{REPOSITORY}:7b-chat", f"{REPOSITORY}@sha256:{DIGEST}"
DEFAULTS = EngineDefaults("sglang", "0.5.23")
FACTS = from_config(DENSE)


def _spec(uri: str = f"oci://{BY_TAG}", pod: dict[str, Any] | None = None, **source: Any) -> Spec:
    spec = {"model": "chat", "source": {"uri": uri, **source}, "pod": pod or {}}
    return parse({"metadata": {"name": "a"}, "spec": spec})


@pytest.mark.parametrize(
    ("uri", "image"),
    [
        ("ghcr.io/team/qwen:7b", Image("ghcr.io/team/qwen", "7b", "", "")),
        ("ghcr.io/qwen:7b/", Image("ghcr.io/qwen", "7b", "", "")),
        ("localhost:5000/a/b/c:V1.0_x/models/", Image("localhost:5000/a/b/c", "V1.0_x", "", "models")),
        ("localhost/a:1/x:y/z", None),
        (f"ghcr.io/qwen@sha256:{DIGEST}", Image("ghcr.io/qwen", "", DIGEST, "")),
        (f"ghcr.io/qwen:7b@sha256:{DIGEST}/a/b@c", Image("ghcr.io/qwen", "7b", DIGEST, "a/b@c")),
    ],
)
def test_the_parts_of_a_uri(uri: str, image: Image | None) -> None:
    if image is None:
        with pytest.raises(InvalidSpec, match="must have the form oci://REGISTRY/REPOSITORY:TAG/PATH"):
            _spec(f"oci://{uri}")
    else:
        assert image_of(_spec(f"oci://{uri}")) == image


@pytest.mark.parametrize(
    ("uri", "commit", "reference", "policy"),
    [
        (BY_TAG, "", BY_TAG, "Always"),
        (BY_TAG, DIGEST, BY_DIGEST, "IfNotPresent"),
        (BY_DIGEST, "", BY_DIGEST, "IfNotPresent"),
        (f"{BY_TAG}@sha256:{DIGEST}", "", BY_DIGEST, "IfNotPresent"),
    ],
)
def test_an_engine_mounts_the_image_by_its_digest(uri: str, commit: str, reference: str, policy: str) -> None:
    made = registry.engine_source(_spec(f"oci://{uri}/weights"), replace(FACTS, commit=commit), DEFAULTS)
    assert made.model_path == "/models/source/models/qwen/weights"
    assert made.volumes == ({"name": "source", "image": {"reference": reference, "pullPolicy": policy}},)
    assert made.mounts == ({"name": "source", "mountPath": "/models/source/models/qwen", "readOnly": True},)
    assert (made.revision, made.downloads, made.fetch, made.env) == (None, False, None, ())


def test_a_file_of_an_image() -> None:
    made = registry.engine_source(_spec(file="q8_0/a.gguf", secretRef={"name": "pull"}), FACTS, DEFAULTS)
    assert made.model_path == "/models/source/models/qwen/q8_0/a.gguf"


def _inspection(spec: Spec) -> Manifest:
    identity, runtime = (
        PodIdentity(Owner("a", "team", "uid"), "0a1b2c3d"),
        RuntimeImage("operator", "Never", ("chart",)),
    )
    pod = registry.inspection_pod(identity, spec, DEFAULTS, runtime, Inventory())
    assert pod is not None
    return pod


def test_the_inspection_pod_mounts_what_the_engine_mounts_and_pulls_with_the_secrets() -> None:
    spec = _spec(secretRef={"name": "pull"}, pod={"imagePullSecrets": [{"name": "own"}]})
    pod = _inspection(spec)["spec"]
    assert pod["volumes"] == [{"name": "source", "image": {"reference": BY_TAG, "pullPolicy": "Always"}}]
    assert pod["imagePullSecrets"] == [{"name": "chart"}, {"name": "own"}, {"name": "pull"}]
    assert pod["activeDeadlineSeconds"] == 7200
    reads, image = pod["containers"]
    assert reads["command"][-2:] == ["--path", "/models/source/models/qwen"]
    assert reads["volumeMounts"] == [{"name": "source", "mountPath": "/models/source/models/qwen", "readOnly": True}]
    assert (image["image"], image["imagePullPolicy"]) == (BY_TAG, "IfNotPresent")
    assert (image["securityContext"], image["resources"]) == (reads["securityContext"], reads["resources"])
    assert "volumeMounts" not in image
    # A program of the image would run whatever a tenant puts there.
    (program,) = image["command"]
    assert program.startswith("/proc/")


def test_a_digest_needs_no_second_container() -> None:
    (container,) = _inspection(_spec(f"oci://{BY_DIGEST}"))["spec"]["containers"]
    assert container["name"] == "inspection"


# What pods show.


def _seen(spec: Spec, **status: Any) -> Manifest:
    """The inspection pod with a status, as the operator keeps it."""
    return kept_pod(_inspection(spec) | {"status": status})


def _waits(reason: str, message: str) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    # The second container of the pod never starts.
    never = {"terminated": {"reason": "StartError", "exitCode": 128}}
    reads = {"name": "inspection", "image": "own", "state": state}
    return {"containerStatuses": [{"name": "image", "state": never}, reads]}


def _judged(pod: Manifest, spec: Spec, outcome: Any = FACTS) -> Any:
    source = registry.inspected(spec, DEFAULTS)
    assert source is not None
    return image_volumes.judged(pod, source, outcome)


def _unready(pod: Manifest, spec: Spec) -> tuple[Reason, str]:
    source = registry.inspected(spec, DEFAULTS)
    assert source is not None
    found = image_volumes.unready(pod, source)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("image_id", "digest"),
    [
        (f"{REPOSITORY}@sha256:{DIGEST}", DIGEST),
        (f"docker-pullable://{REPOSITORY}@sha256:{DIGEST}", DIGEST),
        # Imported into the node, known by another name, of no use.
        (f"sha256:{DIGEST}", ""),
        (f"registry.example.com/other@sha256:{DIGEST}", ""),
        (f"{REPOSITORY}@sha256:{DIGEST[1:]}", ""),
        ("", ""),
    ],
)
def test_the_digest_of_a_tag_comes_from_the_pods_status(image_id: str, digest: str) -> None:
    spec = _spec()
    found = _judged(_seen(spec, containerStatuses=[{"name": "image", "imageID": image_id}]), spec)
    if digest:
        assert found == replace(FACTS, commit=digest)
    else:
        reason, message = found
        assert reason is Reason.INSPECTION_FAILED
        assert f"did not tell the digest of the image {BY_TAG}" in message


def test_a_mirror_that_a_webhook_puts_in_place_tells_the_digest_too() -> None:
    spec = _spec()
    pod = _inspection(spec)
    pod["spec"]["containers"][1]["image"] = "mirror.example.com/qwen:7b-chat"
    image_id = f"mirror.example.com/qwen@sha256:{DIGEST}"
    pod["status"] = {"containerStatuses": [{"name": "image", "imageID": image_id}]}
    assert _judged(kept_pod(pod), spec) == replace(FACTS, commit=DIGEST)


def test_a_digest_in_the_uri_is_the_commit() -> None:
    spec = _spec(f"oci://{BY_DIGEST}")
    assert _judged(_seen(spec), spec) == replace(FACTS, commit=DIGEST)


def test_a_failed_inspection_stays_failed() -> None:
    failed = (Reason.TRUNCATED_WEIGHTS, "a file is too short")
    assert _judged(_seen(_spec()), _spec(), failed) == failed


@pytest.mark.parametrize("folder", ["", "missing"])
def test_nothing_in_an_image_may_mean_an_artifact(tmp_path: Path, folder: str) -> None:
    report, _ = examine(tmp_path / folder)
    said = report["error"]["message"]
    reason, message = _judged(_seen(_spec()), _spec(), (Reason(report["error"]["reason"]), said))
    assert reason is Reason.MODEL_NOT_FOUND
    assert message.startswith(said)
    assert "as oras push makes it, is mounted empty" in message


@pytest.mark.parametrize(
    "volumes",
    [[], [{"name": "source", "emptyDir": {}}]],
    ids=["feature gate off", "before Kubernetes 1.31"],
)
def test_an_api_server_that_drops_the_volume_is_named(volumes: list[dict[str, Any]]) -> None:
    pod = deepcopy(_seen(_spec()))
    pod["spec"]["volumes"] = volumes
    for reason, message in (_unready(pod, _spec()), _judged(pod, _spec(), (Reason.MODEL_NOT_FOUND, "is empty"))):
        assert reason is Reason.IMAGE_VOLUMES_UNSUPPORTED
        assert "its API server, or a webhook" in message
        assert "needs Kubernetes 1.35 or newer, or 1.31 or newer with the feature gate ImageVolume" in message
        assert "pvc://CLAIM/PATH" in message


@pytest.mark.parametrize(
    ("waiting", "text", "reason", "says"),
    [
        (
            "CreateContainerError",
            'failed to generate container "1" spec: failed to apply OCI options: failed to mkdir "": mkdir : no such '
            "file or directory",
            Reason.IMAGE_VOLUMES_UNSUPPORTED,
            "containerd 2.1 and CRI-O 1.31",
        ),
        (
            "CreateContainerError",
            "failed to mount image volume: ImageVolumeMountFailed: no such device",
            Reason.IMAGE_VOLUMES_UNSUPPORTED,
            "no such device",
        ),
        (
            "CreateContainerConfigError",
            "path is empty *image.imagePlugin",
            Reason.IMAGE_VOLUMES_UNSUPPORTED,
            "feature gate ImageVolume",
        ),
        ("CreateContainerConfigError", 'secret "a" not found', Reason.POD_REFUSED, 'secret "a" not found'),
        (
            "ErrImagePull",
            f'rpc error: code = NotFound desc = failed to pull and unpack image "{BY_TAG}": failed to resolve image: '
            f"{BY_TAG}: not found",
            Reason.MODEL_NOT_FOUND,
            "correct spec.source.uri, or push the image",
        ),
        (
            "ImagePullBackOff",
            f'Back-off pulling image "{BY_TAG}": ErrImagePull: rpc error: code = Unknown desc = failed to pull and '
            f'unpack image "{BY_TAG}": failed to resolve image: pull access denied, repository does not exist or may '
            "require authorization: authorization failed: no basic auth credentials",
            Reason.AUTH_REQUIRED,
            "spec.source.secretRef",
        ),
        (
            "ErrImagePull",
            f'rpc error: code = Unknown desc = failed to pull and unpack image "{BY_TAG}": dial tcp 10.0.0.1:443: i/o '
            "timeout",
            Reason.IMAGE_PULL_FAILED,
            f"cannot pull the image {BY_TAG}",
        ),
        (
            "ErrImagePull",
            'failed to pull and unpack image "own": own: not found',
            Reason.IMAGE_PULL_FAILED,
            "cannot pull the image own",
        ),
    ],
)
def test_the_kubelets_words_become_a_reason(waiting: str, text: str, reason: Reason, says: str) -> None:
    spec = _spec()
    found, message = _unready(_seen(spec, **_waits(waiting, text)), spec)
    assert found is reason
    assert says in message


def test_the_status_has_only_a_little_of_what_a_registry_answers() -> None:
    answer = "unexpected status from HEAD request: 500 " + "x" * 300 + "secret"
    text = (
        f'Back-off pulling image "{BY_TAG}": ErrImagePull: rpc error: code = Unknown desc = failed to pull and unpack '
        f'image "{BY_TAG}": failed to resolve image: {answer}'
    )
    spec = _spec()
    reason, message = _unready(_seen(spec, **_waits("ImagePullBackOff", text)), spec)
    assert reason is Reason.IMAGE_PULL_FAILED
    _, _, words = message.partition(f"the node cannot pull the image {BY_TAG}: ")
    assert words.startswith("unexpected status from HEAD request: 500 x")
    assert len(words) <= 120


def test_while_the_node_pulls_it_says_so() -> None:
    spec, pod = _spec(), _inspection(_spec())
    pod["spec"]["nodeName"] = "gpu-1"
    assert _unready(kept_pod(pod), spec) == (Reason.INSPECTING, f"the node gpu-1 pulls the image {BY_TAG}")


def test_pods_of_other_sources_are_left_alone() -> None:
    source = registry.inspected(_spec("pvc://models/qwen"), DEFAULTS)
    assert source is not None
    assert source.image is None
    assert image_volumes.unready({}, source) is None
    assert image_volumes.judged({}, source, FACTS) is FACTS


def test_nobody_names_a_tag_and_a_digest_apart() -> None:
    both = registry.inspected(_spec(f"oci://{BY_TAG}@sha256:{DIGEST}"), DEFAULTS)
    assert both is not None
    assert both.image == ImageVolume(BY_DIGEST)
