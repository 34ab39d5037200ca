"""The parts of the test bed's cluster half that decide something: keys, certificates, pools, GPU labels."""

import ipaddress
import itertools
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from tests.testbed.binaries import PARTS, Part
from tests.testbed.cache import StepFailed, cached, elapsed, key, run_step
from tests.testbed.layout import API_SERVICE_ADDRESS, NODE_ADDRESS, Layout, layout
from tests.testbed.ownership import OWNER, abandoned, owned
from tests.testbed.pki import SUBJECTS, make_pki, pki_is_stale
from tests.testbed.simulated import PRODUCTS, Pool, gpu_labels, node_manifest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWEN_TESTBED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("other", [[b"a"], [b"b", b"a"], [b"ab"], [b"a", b"b", b""]])
def test_key_changes_with_content_order_and_boundaries(other: list[bytes]) -> None:
    assert key([b"a", b"b"]) == key(iter([b"a", b"b"]))
    assert key([b"a", b"b"]) != key(other)


def test_a_part_is_built_once_and_whole() -> None:
    builds = []

    def build(folder: Path) -> None:
        builds.append(folder)
        (folder / "made").touch()

    first = cached("part", [b"1"], build)
    assert cached("part", [b"1"], build) == first
    assert (first / "made").exists()
    assert len(builds) == 1
    assert builds[0] != first


def test_a_failed_or_killed_build_leaves_no_part(cache: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cached("part", [b"1"], fails)
    left = cache / "part" / ".building-left-by-a-kill"
    left.mkdir()
    folder = cached("part", [b"1"], lambda folder: (folder / "whole").touch())
    assert [path.name for path in (cache / "part").iterdir()] == [folder.name]
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_a_failed_step_shows_its_last_words() -> None:
    with pytest.raises(
        StepFailed, match=r"(?s)compiling failed: sh .* ended with 3; .*compiling\.log\n.*no such header"
    ):
        run_step("compiling", ["sh", "-c", "echo no such header; exit 3"])


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.9, "59s"), (200, "3m20s"), (3900, "1h05m")])
def test_elapsed(seconds: float, text: str) -> None:
    assert elapsed(seconds) == text


def test_a_part_is_rebuilt_for_another_compiler_or_other_flags() -> None:
    part = PARTS[0]
    other = Part(part.name, part.package, "-w")
    keys = {key(part.inputs("go1.26.8")), key(part.inputs("go1.26.9")), key(other.inputs("go1.26.8"))}
    assert len(keys) == 3


def test_certificates_name_whom_the_cluster_expects(tmp_path: Path) -> None:
    make_pki(tmp_path)
    certificates = {name: x509.load_pem_x509_certificate((tmp_path / f"{name}.crt").read_bytes()) for name in SUBJECTS}
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    for certificate in certificates.values():
        certificate.verify_directly_issued_by(authority)
    names = certificates["apiserver"].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    assert {"127.0.0.1", NODE_ADDRESS, API_SERVICE_ADDRESS} <= addresses
    assert "kubernetes.default.svc" in names.get_values_for_type(x509.DNSName)
    assert certificates["kubelet"].subject.rfc4514_string() == "CN=system:node:testbed-node,O=system:nodes"
    assert certificates["admin"].subject.rfc4514_string() == "CN=testbed-admin,O=system:masters"
    assert len({certificate.subject for certificate in certificates.values()}) == len(certificates)
    assert (tmp_path / "admin.key").stat().st_mode & 0o077 == 0


def test_the_real_networks_hold_their_addresses() -> None:
    from tests.testbed import layout as at

    inside = ipaddress.IPv4Network(at.POD_RANGE)
    simulated, link = ipaddress.IPv4Network(at.SIMULATED_POD_RANGE), ipaddress.IPv4Address(at.HOST_ADDRESS)
    nodes = [at.RealNodeNames(number) for number in range(1, at.MOST_NODES + 1)]
    ranges = [ipaddress.IPv4Network(node.pod_range) for node in nodes]
    links = [ipaddress.IPv4Network(f"{at.LINK_ADDRESS}/30", strict=False)]
    links += [ipaddress.IPv4Network(f"{node.link[0]}/30", strict=False) for node in nodes[1:]]
    assert all(one.subnet_of(inside) for one in (simulated, *ranges, *links))
    assert not any(one.overlaps(other) for one, other in itertools.combinations((*ranges, *links), 2))
    assert not any(one.overlaps(simulated) for one in ranges)
    assert link in links[0]
    for node, pods in zip(nodes, ranges, strict=True):
        assert {ipaddress.IPv4Address(node.address), ipaddress.IPv4Address(node.first_pod)} <= set(pods.hosts())
    assert all(
        {ipaddress.IPv4Address(end) for end in node.link} == set(links[node.number - 1].hosts()) for node in nodes[1:]
    )
    assert nodes[0].address == at.NODE_ADDRESS
    answered = ipaddress.IPv4Network(at.SIMULATED_METRICS_RANGE)
    assert answered.subnet_of(simulated)
    assert not any(between.overlaps(answered) for between in links)
    # kwok hands out addresses from the beginning: those of ordinary nodes never come that far.
    assert int(answered[0]) - int(simulated[0]) >= 16384
    assert ipaddress.IPv4Address(at.API_SERVICE_ADDRESS) in ipaddress.IPv4Network(at.SERVICE_RANGE)


def test_keys_without_those_of_a_further_node_are_stale(tmp_path: Path) -> None:
    at = Layout(tmp_path)
    assert not pki_is_stale(at)
    at.pki.mkdir()
    make_pki(at.pki)
    assert not pki_is_stale(at)
    at.key("kubelet-2").unlink()
    assert pki_is_stale(at)


def test_pool_of_simulated_nodes() -> None:
    assert Pool.parse("NVIDIA-L4=8x2") == Pool("NVIDIA-L4", gpus=8, nodes=2)
    assert Pool.parse("NVIDIA-L4=8x2").names() == ["nvidia-l4-8x-1", "nvidia-l4-8x-2"]


@pytest.mark.parametrize(
    "text", ["NVIDIA-L4", "NVIDIA-L4=8", "NVIDIA-L4=0x1", "NVIDIA-L4=8x0", "RTX=8x1", "=8x1", "NVIDIA-L4=8x1 "]
)
def test_pool_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"=GPUSxNODES|the known products are"):
        Pool.parse(text)


def test_labels_are_those_of_gpu_feature_discovery() -> None:
    labels = gpu_labels("NVIDIA-H100-80GB-HBM3", 8)
    assert labels["nvidia.com/gpu.memory"] == "81559"
    assert labels["nvidia.com/gpu.count"] == "8"
    assert (labels["nvidia.com/gpu.compute.major"], labels["nvidia.com/gpu.compute.minor"]) == ("9", "0")
    assert labels["nvidia.com/gpu.family"] == "hopper"
    assert all(isinstance(value, str) for product in PRODUCTS for value in gpu_labels(product, 1).values())


def test_a_simulated_node_keeps_other_pods_away_unless_told_otherwise() -> None:
    tainted = node_manifest("a", gpu_labels("NVIDIA-L4", 8), 8)
    assert tainted["spec"]["taints"][0]["effect"] == "NoSchedule"
    assert tainted["metadata"]["labels"]["type"] == "kwok"
    assert tainted["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    assert node_manifest("b", {}, 0, taints={})["spec"]["taints"] == []
    assert "nvidia.com/gpu" not in node_manifest("b", {}, 0)["status"]["capacity"]


def test_a_simulated_node_can_have_addresses_and_taints_of_its_own() -> None:
    spec = node_manifest("a", {}, 8, taints={"example.com/mine": "yes"}, pod_range="10.1.0.0/24")["spec"]
    assert spec["taints"] == [{"key": "example.com/mine", "value": "yes", "effect": "NoSchedule"}]
    assert (spec["podCIDR"], spec["podCIDRs"]) == ("10.1.0.0/24", ["10.1.0.0/24"])


def test_only_what_a_dead_process_owned_is_abandoned() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    labels = {"mine": owned(), "its": {OWNER: str(ended.pid)}, "nobody's": {"type": "kwok"}, "plain": None}
    items = [{"metadata": {"name": name, **({"labels": one} if one else {})}} for name, one in labels.items()]
    assert abandoned(items) == ["its"]
    assert abandoned([{"metadata": {**items[1]["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}]) == []


@pytest.mark.parametrize("path", ["relative/state", "/state", "/var/lib/" + "x" * 90, "/var/lib/../state"])
def test_a_state_folder_that_would_be_dangerous_or_too_long_is_refused(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_TESTBED_STATE", path)
    with pytest.raises(StepFailed, match="QWEN_TESTBED_STATE="):
        layout()
