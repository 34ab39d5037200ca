"""Public reports and files of other people, tried with `plan`: reduced inputs, personal details replaced.

The first word of each name is the file. The source is a repository and an issue, or a file.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_operator import cli

DATA = Path(__file__).parent / "data" / "reports"
SMALL = ("--model", "Qwen/Qwen2.5-0.5B-Instruct", "--context", "4096")
SEVEN = ("--model", "Qwen/Qwen2.5-7B-Instruct", "--context", "8192")
SHARED = "nvidia.com/gpu.shared"


def nodes(file: str, *words: str, model: tuple[str, ...] = SEVEN) -> list[str]:
    return [*model, "--nodes", str(DATA / f"{file}.json"), *words]


def config(file: str, *words: str) -> list[str]:
    return ["--model", "m", "--checkpoint-config", str(DATA / f"{file}.json"), *words]


def manifest(file: str, *words: str) -> list[str]:
    return ["-f", str(DATA / f"{file}.yaml"), *words]


# Source and situation: options, exit code, what is printed.
REPORTS: dict[str, tuple[list[str], int, list[str]]] = {
    "gpu-operator#637: the resource of whole GPUs is left over, all are cut": (
        nodes("n1_mig_stale_gpu"),
        3,
        ["n1: NVIDIA-A100-80GB-PCIe: 2 nvidia.com/gpu are allocatable, but all 2 GPUs are cut into MIG slices"],
    ),
    "gpu-operator#637: its slices": (
        nodes("n1_mig_stale_gpu", "--resource-name", "nvidia.com/mig-2g.20gb", model=SMALL),
        0,
        ["1 x NVIDIA-A100-80GB-PCIe-MIG-2g.20gb per replica", "(4 replicas on 4 MIG slices)"],
    ),
    "gpu-feature-discovery#76: renamed shares, and the label says 1": (
        nodes("n2_renamed_replicas_1", "--resource-name", SHARED),
        3,
        ["DOES NOT FIT", "50 x NVIDIA-A10G-SHARED (460 MiB each)"],
    ),
    "gpu-feature-discovery#7: labels of mig-3g.21gb, resource mig-3g.20gb": (
        nodes("n3_mig_label_21gb", "--resource-name", "nvidia.com/mig-3g.20gb", model=SMALL),
        0,
        ["(16 replicas on 16 MIG slices)", "no label nvidia.com/mig-3g.20gb.memory: planned with 18022 MiB"],
    ),
    "network-operator#211: labels of an old driver, a third GPU beside slices": (
        nodes("n4_mig_old_gfd"),
        0,
        ["(1 replica on 1 GPUs)", "count is 3 and at least 2 of them are cut into MIG slices", "capability 8.0"],
    ),
    "gpu-operator#981: the strategy single": (
        nodes("n5_mig_single", "--product", "NVIDIA-A100-PCIE-40GB-MIG-1g.5gb", model=SMALL),
        0,
        ["(14 replicas on 14 MIG slices)", "its 4864 MiB for itself"],
    ),
    "bottlerocket#4418: slices that are shared and renamed": (
        nodes("n6_mig_and_renamed", "--resource-name", SHARED, model=SMALL),
        0,
        ["(96 replicas on 96 shared GPUs)", "4 pods share one NVIDIA-H100-80GB-HBM3-MIG-2g.20gb", "4992 MiB"],
    ),
    "bottlerocket#4418: without labels nobody knows how many pods share": (
        nodes("n6b_bottlerocket", "--resource-name", SHARED),
        3,
        ["n6: 128 x nvidia.com/gpu.shared: no label says how many pods share one GPU"],
    ),
    "gpu-operator#1602: two GPUs cut in two ways, six whole": (nodes("n7_custom_mig"), 0, ["on 6 GPUs)"]),
    "gpu-operator#1602: a profile that is not there": (
        nodes("n7_custom_mig", "--resource-name", "nvidia.com/mig-7g.80gb"),
        3,
        ["the nodes offer nvidia.com/gpu, nvidia.com/mig-1g.10gb, nvidia.com/mig-2g.20gb"],
    ),
    "gpu-operator#835: fifteen pods for each GPU": (
        nodes("n8_ts15", "--product", "A100-80GB-SHARED", model=SMALL),
        0,
        ["(60 replicas on 60 shared GPUs)", "15 pods share one NVIDIA-A100-SXM4-80GB", "5461 MiB"],
    ),
    "kserve#947: the resources of Aliyun's sharer": (
        nodes("n9_aliyun"),
        3,
        ["offered as 4 x aliyun.com/gpu-count, 64 x aliyun.com/gpu-mem"],
    ),
    "kaito#242: an instance type with V100": (
        nodes("n10_nc12"),
        3,
        ["SGLang 0.5.23 needs compute capability 7.5, Tesla-V100-PCIE-16GB has 7.0"],
    ),
    "modelplane#192: Qwen3-8B with 16K on one L4 of an instance type": (
        nodes("n12_g6", model=("--model", "Qwen/Qwen3-8B", "--context", "16384")),
        0,
        ["1 x NVIDIA-L4 per replica"],
    ),
    "HAMi#722: four cards that HAMi shares tenfold": (
        nodes("n13_hami"),
        0,
        ["on 4 GPUs)", "HAMi shares each GPU between 10 pods"],
    ),
    "llm-compressor#959: 14 heads": (
        config("c1_qwen25_05b", "--gpu", "T4=4x1", "--tensor", "4"),
        2,
        ["14 attention heads are not divisible by TP 4; valid here: 1, 2"],
    ),
    "llm-compressor#1758: Qwen3-30B-A3B in FP8 blocks, excluded by name": (
        config("c2_qwen3_30b_fp8", "--gpu", "L40S=4x1", "--tensor", "4"),
        0,
        ["TP 4, EP 2", "= 192 is not a multiple of 128"],
    ),
    "QwenLM/Qwen3#1485: Qwen3-235B-A22B in FP8 blocks on 8 GPUs": (
        config("c3_qwen3_235b_fp8", "--gpu", "H100-80GB=8x1"),
        0,
        ["4 x NVIDIA-H100-80GB-HBM3 per replica", "8e2"],
    ),
    "sglang#20973: NVFP4 of modelopt": (
        config("c4_qwen35_nvfp4", "--gpu", "GB10=1x1:98304"),
        2,
        ["quant_method is 'modelopt', it must be one of"],
    ),
    "DiffSynth Nexus-Gen: a sparse vision_config with old names": (
        config("c5_nexus_gen", "--gpu", "A10G=1x1", "--context", "8192"),
        0,
        ["Qwen2_5_VLForConditionalGeneration", "15.52 GiB"],
    ),
    "Qwen3-VL-30B-A3B-Instruct: the published file": (
        config("c6_qwen3_vl_30b", "--gpu", "H100-80GB=2x1"),
        0,
        ["Qwen3VLMoeForConditionalGeneration", "2 x NVIDIA-H100-80GB-HBM3"],
    ),
    "vllm#54178: experts of 320 in FP8 blocks load on no number of GPUs": (
        config("c7_moe_320_fp8", "--gpu", "L40S=8x1"),
        3,
        ["cannot load the weights on any number of GPUs", "320 is not a multiple of 128"],
    ),
    "vllm#25455: GPTQ that names the modules it has": (
        config("c8_next_gptq_blocks", "--gpu", "H100-80GB=2x1"),
        3,
        ["SGLang ignores modules_in_block_to_quantize"],
    ),
    "vllm#2699: Qwen1.5-14B GPTQ before it was padded": (
        config("c9_qwen15_14b_gptq", "--gpu", "A10G=2x1", "--tensor", "2"),
        2,
        ["13696 / TP 2 = 6848 is not a multiple of 128", "valid here: 1"],
    ),
    "sglang#19644: Qwen3.5-35B-A3B AWQ": (
        config("c10_qwen35_awq", "--gpu", "A100-40GB=1x1", "--context", "65536"),
        0,
        ["awq 4 bit", "hybrid, 10 layers with KV cache"],
    ),
    "sglang#3265: two servers on one H100": (
        [*SEVEN, "--gpu", "H100-80GB=2x1/2", "--resource-name", SHARED],
        0,
        ["(2 replicas on 2 shared GPUs)", "--max-total-tokens="],
    ),
    "scaleway docs#2165: seven slices of an H100, without labels": (
        [*SMALL, "--gpu", "H100-PCIe=7x1", "--resource-name", "nvidia.com/mig-1g.10gb"],
        0,
        [
            "(7 replicas on 7 MIG slices)",
            "planned with 9011 MiB, which the profile has at least; exact is H100-PCIe=7x1:MIB",
        ],
    ),
    "k8s-device-plugin#1078: several slices for one engine": (
        manifest("l1_qd_mig", "--nodes", str(DATA / "n7_custom_mig.json")),
        2,
        ["spec.parallelism.tensor is 2: an engine cannot be split over MIG slices or shared GPUs; valid here: 1"],
    ),
    "Xinference#1565: CodeQwen1.5-7B on two T4": (
        ["--model", "Qwen/CodeQwen1.5-7B-Chat", "--gpu", "T4=2x1", "--context", "8192"],
        0,
        ["2 x Tesla-T4 per replica, TP 2", "dtype: float16"],
    ),
}


@pytest.mark.parametrize(("words", "code", "says"), REPORTS.values(), ids=REPORTS.keys())
def test_a_public_report(capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: list[str]) -> None:
    answer = cli.main(["plan", *words])
    printed = capsys.readouterr()
    assert answer == code
    for text in says:
        assert text in printed.out + printed.err


BAD = {
    "HAMi website#654: memory as a resource": (
        manifest("l2_qd_gpumem", "--gpu", "H100-80GB=1x1"),
        "spec.hardware.resourceName: 'nvidia.com/gpumem'",
    ),
    "a pool of shares that does not say of how many": (
        [*SEVEN, "--config", str(DATA / "l3_pools_shared.yaml")],
        "gpuPools[0].podsPerGpu",
    ),
}


@pytest.mark.parametrize(("words", "says"), BAD.values(), ids=BAD.keys())
def test_a_public_report_that_is_no_valid_input(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert cli.main(["plan", *words]) == 2
    assert says in capsys.readouterr().err
