"""`qwen-operator plan` on checkpoints of public bug reports: the verdict and the exit code."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qwen_operator import cli

SIZING = Path(__file__).parents[1] / "checkpoints/data/sizing"
# File, other options, exit code, what the output says.
CASES = {
    # vllm#13640: one plain layer frees no other one from groups of 128.
    "c13h_72b_awq_unpadded_layer0_plain": (
        "--weight-bytes 42800000000 --gpu L40S=8x1", 3, "TP 2: MLP width 29568 / TP = 14784 is not a multiple of 128"
    ),
    "c13e_awq_one_layer_mlp_32b": ("--gpu L4=4x1", 0, "2 x NVIDIA-L4 per replica, TP 2"),
    # GPTQModel#904: 27 of 28 layers are left out by their numbers.
    "c13d_gptq_dynamic_skip": ("--gpu A10G=1x1", 0, "weights   13.86 GiB"),
    "c4_float32_merge": ("--weight-bytes 30462466048 --gpu A10G=4x1", 0, "1 x NVIDIA-A10G per replica, TP 1"),
    "c23_qwen25vl_3b_full": ("--tensor 8 --gpu T4=8x1", 2, "width 3420 of the vision tower is not divisible by TP 8"),
    "a2_qwen2vl_72b_gptq": ("--gpu H100-80GB=8x1", 0, "weights   39.94 GiB"),
    "c2_qwen25vl_3b_awq": ("--gpu L4=1x1", 0, "weights   3.17 GiB"),
    # sglang#32401
    "c3_qwen35_4b_textonly": ("--gpu L4=1x1", 0, "hybrid, 8 layers with KV cache"),
    # sglang#9642, sglang#19406
    "c10_ct_w4a16": ("--gpu L4=1x1", 0, "compressed-tensors 4 bit, 28 layers"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "options", "code", "says"), [(name, *row) for name, row in CASES.items()])
def test_the_verdict(name: str, options: str, code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.process_time()
    config = str(SIZING / f"{name}.json")
    assert cli.main(["plan", "--model", "m", "--checkpoint-config", config, *options.split()]) == code
    assert says in capsys.readouterr().out
    assert time.process_time() - started < 1
