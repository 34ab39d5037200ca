"""`qwen-operator plan`: exit codes, data, text, and what is said of bad input."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator import cli, kube
from qwen_operator.cli.verdict import sizes_text
from qwen_operator.kube import Unavailable, client
from tests.unit.checkpoints.configs import DENSE
from tests.unit.checkpoints.templates import QWEN3

MODEL = "Qwen/Qwen1.5-72B-Chat"
H100 = "NVIDIA-H100-80GB-HBM3"
MANIFEST = {
    "apiVersion": "qwen-operator.dev/v1alpha1",
    "kind": "QwenDeployment",
    "metadata": {"name": "qwen-72b"},
    "spec": {"model": MODEL},
}
NODE = {
    "metadata": {"name": "gpu-1", "labels": {"nvidia.com/gpu.product": H100, "nvidia.com/gpu.memory": "81559"}},
    "status": {"allocatable": {"nvidia.com/gpu": "8"}},
}
KEYS = {
    "tensorParallel",
    "gpusPerReplica",
    "nodesPerReplica",
    "gpuProduct",
    "kvTokens",
    "maxRunningRequests",
    "weightBytesPerRank",
    "kvBytesPerTokenPerRank",
    "args",
    "env",
    "startupSeconds",
    "steps",
}
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "torch_dtype": "float16",
    "num_hidden_layers": 40,
    "hidden_size": 5120,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "intermediate_size": 13696,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
}


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["plan", *words])
    out, err = capsys.readouterr()
    return code, out, err


def _write(path: Path, value: Any) -> str:
    data = value if isinstance(value, str | bytes) else yaml.safe_dump(value)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def test_a_plan_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, "--model", MODEL, "--gpu", f"{H100}=8x1", "-o", "json")
    result = json.loads(out)
    assert code == 0
    assert result.keys() >= KEYS
    assert (result["tensorParallel"], result["gpusPerReplica"], result["nodesPerReplica"]) == (4, 4, 1)
    assert (result["gpuProduct"], result["kvTokens"]) == (H100, 57408)
    assert result["env"][0] == {"name": "SGLANG_CUDA_COREDUMP_BEFORE_CRASH", "value": "false"}
    _, out, _ = _run(capsys, "--model", MODEL, "--gpu", "H100-80GB=8x1", "-o", "yaml")
    assert yaml.safe_load(out) == result


def test_a_refusal_as_data_with_commands_that_plan(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", MODEL, "--context", "16384", "--gpu", "NVIDIA-L4=8x1")
    code, out, _ = _run(capsys, *words, "-o", "json")
    refusal = json.loads(out)["noFit"]
    assert code == 3
    assert refusal.keys() >= {"reason", "missing", "alternatives", "steps"}
    assert refusal["reason"] == "DoesNotFit"
    assert "GiB of memory per GPU" in refusal["missing"]
    assert len(refusal["alternatives"]) >= 5
    for one in refusal["alternatives"]:
        words_again = shlex.split(one["command"])[2:]
        again, out, _ = _run(capsys, *words_again, "-o", "json")
        assert again == 0, one
        plan = json.loads(out)
        assert (plan["gpuProduct"], plan["gpusPerReplica"], plan["kvTokens"]) == (
            one["gpuProduct"],
            one["gpusPerReplica"],
            one["kvTokens"],
        )


def test_the_text_of_a_plan_begins_with_the_verdict_and_shows_what_lost(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, "--model", MODEL, "--gpu", f"{H100}=8x1")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == (f"FITS   {MODEL}  ->  4 x {H100} per replica, TP 4, 1 node   (2 replicas on 8 GPUs)")
    rows = [line.split() for line in lines if line.lstrip()[:1].isdigit()]
    assert [(row[0], row[-1] == "it") for row in rows] == [("1", False), ("2", False), ("4", True), ("8", False)]
    for text in (
        "64 attention heads are not divisible by TP",
        "79.65 - 1.22 context - 1.25 communication",
        "= 57 408 tokens",
        "22 of 2048 in + 512 out (asked: none)",
        "--mem-fraction-static=0.9",
        "cheaper   spec.model: Qwen/Qwen1.5-72B-Chat-GPTQ-Int4 takes 2 x H100-80GB (40 512 tokens)",
        "never run on a GPU",
    ):
        assert text in out
    assert max(len(line) for line in lines) < 160


def test_refused_sizes_stay_one_short_line(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = _run(capsys, "--model", MODEL, "--gpu", f"{H100}=40x1")
    assert "  no  TP 3, 5 to 7, 9 to 15, 17 to 31, 33 to 40: 64 attention heads are not divisible by TP\n" in out
    assert sizes_text([3, 5, 6, 7]) == "3, 5, 6, 7"
    assert sizes_text(range(1, 64, 2)) == "1, 3, 5, 7, 9, 11, 13, 15 and 24 more"


@given(st.sets(st.integers(2, 1000), max_size=64))
def test_any_sizes_stay_short(sizes: set[int]) -> None:
    assert len(sizes_text(sorted(sizes))) < 120


PASTED = {
    "https://huggingface.co/Qwen/Qwen3-8B": "Set spec.model to Qwen/Qwen3-8B, or spec.source.uri to hf://Qwen/Qwen3-8B",
    "hf.co/Qwen/Qwen3-8B/tree/v1": "Set spec.source.uri to hf://Qwen/Qwen3-8B and spec.source.revision to v1",
}


@pytest.mark.parametrize("address", PASTED)
def test_a_pasted_address_is_answered_with_the_value(capsys: pytest.CaptureFixture[str], address: str) -> None:
    code, _, err = _run(capsys, "--model", address, "--gpu", "L4=1x1")
    assert code == 2
    assert PASTED[address] in err


def test_the_folder_of_a_config_is_read_for_the_chat_template(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(DENSE | {"architectures": ["Qwen3ForCausalLM"]}))
    words = ("--model", "support-bot", "--checkpoint-config", str(config), "--gpu", "H100-80GB=1x1")
    _, out, _ = _run(capsys, *words)
    assert "parsers   none (there is no chat template)" in out
    assert "none is beside the config.json" in out
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": QWEN3}))
    _, out, _ = _run(capsys, *words)
    assert "parsers   --tool-call-parser=qwen, --reasoning-parser=qwen3 (the chat template has" in out
    (tmp_path / "1_Pooling").mkdir()
    _, out, _ = _run(capsys, *words)
    assert "parsers   none (it answers with vectors, at /v1/embeddings)" in out
    assert "--is-embedding" in out
    (tmp_path / "tokenizer_config.json").write_text("[]")
    code, _, err = _run(capsys, *words)
    assert code == 2
    assert "tokenizer_config.json holds a list, it must hold a JSON object" in err


def test_an_unverified_row_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = _run(capsys, "--model", "Qwen/QwQ-32B", "--gpu", "H100-80GB=8x1")
    assert "not verified: the catalog's row of Qwen/QwQ-32B was not compared with its config.json" in out
    _, out, _ = _run(capsys, "--model", MODEL, "--gpu", "H100-80GB=8x1")
    assert "not verified" not in out


def test_the_text_of_a_refusal_ends_with_what_would_fit(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, "--model", MODEL, "--gpu", "NVIDIA-L4=8x1")
    assert code == 3
    assert out.startswith(f"DOES NOT FIT   {MODEL} on 8 x NVIDIA-L4 (23 034 MiB each)")
    assert "spec.model: Qwen/Qwen1.5-72B-Chat-AWQ" in out
    assert "try: qwen-operator plan --model Qwen/Qwen1.5-72B-Chat-GPTQ-Int4 --gpu NVIDIA-L4=8x1" in out
    assert "missing   12.7 GiB" in out


TEXTS = {
    "several nodes": (
        ["--model", "Qwen/Qwen3-Coder-480B-A35B-Instruct", "--gpu", "H100-80GB=8x4"],
        0,
        [
            "TP 16, 2 nodes   (2 replicas on 32 GPUs)",
            "spec.hardware.maxNodesPerReplica is 1: set it to 2 to run each replica over 2 nodes",
            "(each of the replica's pods)",
        ],
    ),
    "stages over nodes": (
        ["--model", "Qwen/Qwen3-235B-A22B", "--gpu", "L40S=8x2", "--max-nodes", "2", "--pipeline", "2"],
        0,
        ["TP 8, PP 2, 2 nodes   (1 replica on 16 GPUs)", " 8p2 ", "at 8p2 ", "stages    47 + 47 layers", "--pp-size=2"],
    ),
    "stages and experts in groups": (
        ["--model=Qwen/Qwen3-235B-A22B-FP8", "--gpu=L40S=8x2", "--max-nodes=2", "--pipeline=2", "--tensor=8"],
        0,
        [" 8p2e2 ", "8p2e2: experts in 2 groups (--ep-size)"],
    ),
    "stages that would fit": (
        ["--model", "Qwen/Qwen1.5-14B-Chat-AWQ", "--gpu", "L4=8x1"],
        3,
        ["spec.parallelism.pipeline: 2                                  2 x L4"],
    ),
    "experts in groups": (
        ["--model", "Qwen/Qwen3-235B-A22B-FP8", "--gpu", "H100-80GB=8x1"],
        0,
        [" 8e2 ", "8e2: experts in 2 groups (--ep-size), because expert width 1536"],
    ),
    "a split of one's own": (
        ["--model", MODEL, "--gpu", "H100-80GB=8x1", "--tensor", "8"],
        0,
        ["<- spec.parallelism.tensor", "--tp-size=8"],
    ),
    "a hybrid": (
        ["--model", "Qwen/Qwen3.5-27B", "--gpu", "H100-80GB=8x1"],
        0,
        ["hybrid, 16 layers with KV cache", "- states", "state     48 layers keep"],
    ),
    "states are what is missing": (
        ["--model", "Qwen/Qwen3.5-27B", "--gpu", "H100-80GB=2x1", "--concurrency", "500", "--input-tokens", "16"],
        3,
        ["states for 123 requests only", "missing   states for 377 requests"],
    ),
    "a workload": (
        ["--model", "Qwen/Qwen1.5-7B-Chat", "--gpu", "L40S=2x1", "--context", "8192", "--concurrency", "16"],
        0,
        ["workload  16 requests x (2048 + 512)", "(asked: 16)"],
    ),
    "a kernel that is missing": (
        ["--model", "Qwen/Qwen1.5-7B-Chat-GPTQ-Int4", "--gpu", "T4=4x1"],
        3,
        ["NO PLAN   Qwen/Qwen1.5-7B-Chat-GPTQ-Int4: DoesNotFit", "GPTQ weights need compute capability 8.0"],
    ),
    "one that is barred beside one that is small": (
        ["--model", "Qwen/Qwen1.5-72B-Chat-GPTQ-Int8", "--gpu", "T4=4x1", "--gpu", "L4=2x1"],
        3,
        ["refused   GPTQ weights need"],
    ),
    "an impossible split": (
        ["--model", MODEL, "--gpu", "H100-80GB=8x1", "--tensor", "3"],
        2,
        ["NO PLAN", "64 attention heads are not divisible by TP 3; valid here: 1, 2, 4, 8"],
    ),
    "too few GPUs by wish": (
        ["--model", MODEL, "--gpu", "H100-80GB=8x1", "--max-gpus", "2", "--output-tokens", "256"],
        3,
        ["without spec.hardware.maxGpusPerReplica"],
    ),
    "a split that no node has": (
        ["--model", MODEL, "--gpu", "H100-80GB=4x1", "--tensor", "8"],
        2,
        ["spec.parallelism.tensor is 8: one replica can have at most 4 GPUs here; valid here: 1, 2, 4"],
    ),
    "GGUF on several GPUs": (
        ["--model", "Qwen/Qwen1.5-7B-Chat-GGUF", "--gpu", "L40S=8x1", "--tensor", "2"],
        2,
        ["spec.parallelism.tensor is 2: GGUF weights run on one GPU only, not on TP 2; valid here: 1"],
    ),
    "GGUF": (
        ["--model", "Qwen/Qwen1.5-7B-Chat-GGUF", "--gpu", "L40S=8x1"],
        0,
        ["1 x NVIDIA-L40S", "spec.source.file says which file to load"],
    ),
    "a context beyond YaRN": (
        ["--model", MODEL, "--gpu", "H100-80GB=8x1", "--context", "200000"],
        2,
        ["spec.contextTokens is 200000", "(131072 with YaRN): set at most 131072"],
    ),
    "an 8-bit cache": (
        ["--model", MODEL, "--gpu", "H100-80GB=8x1", "--kv-cache-type", "Fp8E4m3"],
        0,
        ["--kv-cache-dtype=fp8_e4m3", "x 1 B = 1280 KiB per token"],
    ),
    "a GPU that nobody knows": (
        ["--model", "Qwen/Qwen1.5-0.5B", "--gpu", "Strange=8x1:24576"],
        0,
        ["1 x Strange", "not known: the compute capability of Strange"],
    ),
}


@pytest.mark.parametrize(("words", "code", "says"), TEXTS.values(), ids=TEXTS.keys())
def test_texts(capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: list[str]) -> None:
    exit_code, out, err = _run(capsys, *words)
    assert exit_code == code, err
    assert [text for text in says if text not in out] == [], out


def test_a_known_gguf_file_needs_no_hub(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = {"uri": "hf://Qwen/Qwen1.5-7B-Chat-GGUF", "file": "qwen1_5-7b-chat-q8_0.gguf"}
    obj = {**MANIFEST, "spec": {"model": MODEL, "source": source}}
    code, out, err = _run(capsys, "-f", _write(tmp_path / "qd.yaml", obj), "--gpu", "L40S=1x1")
    assert code == 0, err
    assert "gguf 8 bit" in out
    assert "not verified: qwen1_5-7b-chat-q8_0.gguf was not read: its bytes are calculated" in out
    source["file"] = "my-own.gguf"
    code, _, err = _run(capsys, "-f", _write(tmp_path / "qd.yaml", obj), "--gpu", "L40S=1x1")
    assert code == 2
    assert "the size of my-own.gguf is in the file itself" in err


def test_a_manifest_and_the_nodes_of_a_cluster(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    manifest = _write(tmp_path / "qd.yaml", MANIFEST)
    shared = {**NODE, "metadata": {"name": "s", "labels": {"nvidia.com/gpu.product": f"{H100}-SHARED"}}}
    nodes = _write(tmp_path / "nodes.yaml", {"kind": "List", "items": [NODE, shared]})
    code, out, _ = _run(capsys, "-f", manifest, "--nodes", nodes)
    assert (code, out.splitlines()[0].partition("  -> ")[2][:30]) == (0, f" 4 x {H100} per"[:30])
    few = {**MANIFEST, "spec": {"model": MODEL, "hardware": {"maxGpusPerReplica": 2}}}
    code, out, _ = _run(capsys, "-f", _write(tmp_path / "few.yaml", few), "--nodes", nodes, "--context", "32000")
    assert code == 3
    assert "s: NVIDIA-H100-80GB-HBM3-SHARED is shared between pods" in out
    assert """try: kubectl patch qd NAME --type merge -p '{"spec":{"hardware":{"maxGpusPerReplica":null}}}'""" in out


FORMS = {
    "-o yaml": lambda nodes: yaml.safe_dump({"kind": "List", "items": nodes}),
    "several documents": yaml.safe_dump_all,
    "-o json": lambda nodes: json.dumps({"kind": "List", "items": nodes}, indent=4),
    "jq .items": json.dumps,
    "jq .items[]": lambda nodes: "\n".join(json.dumps(node, indent=2) for node in nodes) + "\n",
    "one node": lambda nodes: yaml.safe_dump(nodes[0]),
    "flow style": lambda nodes: f"{{items: {json.dumps(nodes)}}}",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_form_in_which_nodes_come(capsys: pytest.CaptureFixture[str], tmp_path: Path, form: Any) -> None:
    nodes = [{**NODE, "kind": "Node"}, {"kind": "Node", "metadata": {"name": "cpu-1"}, "status": {}}]
    code, out, err = _run(capsys, "--model", MODEL, "--nodes", _write(tmp_path / "nodes", form(nodes)), "-o", "json")
    assert code == 0, err
    assert json.loads(out)["tensorParallel"] == 4


def test_nesting_without_end_where_yaml_is_read_in_python(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delattr(yaml, "CSafeLoader")
    code, _, err = _run(capsys, "--model", MODEL, "--nodes", _write(tmp_path / "nodes", "[" * 10_000))
    assert (code, err.count("\n")) == (2, 1)
    assert "is nested too deeply to be read" in err


def test_the_nodes_of_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(NODE).encode())))
    code, _, err = _run(capsys, "--model", MODEL, "--nodes", "-")
    assert (code, err) == (0, "")


def test_what_is_left_out_is_said_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sliced = {**NODE, "status": {"allocatable": {"nvidia.com/gpu": "0", "nvidia.com/mig-1g.10gb": "56"}}}
    sliced["metadata"] = {"name": "m", "labels": {"nvidia.com/gpu.product": H100}}
    code, out, _ = _run(capsys, "--model", MODEL, "--nodes", _write(tmp_path / "nodes", sliced))
    assert code == 3
    assert "no node offers a whole nvidia.com/gpu" in out
    assert out.count("cut into MIG slices") == 1


def test_a_reader_that_has_seen_enough_is_no_fault() -> None:
    words = [sys.executable, "-c", "from qwen_operator.cli import main; raise SystemExit(main())", "models"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as program:
        assert program.stdout
        assert program.stderr
        program.stdout.close()
        assert program.stderr.read() == b""
    assert program.returncode == 141


def test_the_settings_of_the_chart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pool = {"name": "a", "product": H100, "memoryMiB": 81559, "gpusPerNode": 8, "costPerGpuHour": "2.90"}
    values = _write(tmp_path / "values.yaml", {"gpuPools": [pool], "engine": {"args": ["--log-level=warning"]}})
    code, out, _ = _run(capsys, "--model", MODEL, "--config", values)
    assert code == 0
    assert "11.60 per hour and replica at 2.90 per GPU-hour" in out
    assert "--log-level=warning" in out
    assert "replicas on" not in out.splitlines()[0]
    code, out, _ = _run(capsys, "--model", MODEL, "--config", values, "--gpu", "H100-80GB=8x1")
    assert (code, "11.60 per hour" in out) == (0, True)


def test_a_config_json_instead_of_the_catalog(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A 14B in GPTQ: its published files are padded to 14336 and can be split, a fresh one cannot."""
    path = tmp_path / "config.json"
    splits = {}
    for width in (13696, 14336):
        path.write_text(json.dumps({**CONFIG, "intermediate_size": width}))
        words = ("--model", "me/mine", "--checkpoint-config", str(path), "--gpu", "L4=8x1", "-o", "json")
        code, out, _ = _run(capsys, *words)
        splits[width] = (code, json.loads(out).get("tensorParallel"))
    assert splits == {13696: (3, None), 14336: (0, 2)}
    _, out, _ = _run(capsys, *words[:-1], "text")
    assert "the bytes of the weights are computed from config.json, --weight-bytes sets those of the files" in out
    code, out, _ = _run(capsys, *words, "--weight-bytes", "8000000000")
    assert json.loads(out)["weightBytesPerRank"] < 4_200_000_000
    assert code == 0


BAD: dict[str, tuple[list[str], str]] = {
    "unknown model": (["--model", "Qwen/Qwen1.5-72B-Caht", "--gpu", "L4=8x1"], "did you mean Qwen/Qwen1.5-72B-Chat?"),
    "quite unknown model": (["--model", "a/b", "--gpu", "L4=8x1"], "a/b is not in the catalog: give its config.json"),
    "misspelt GPU": (
        ["--model", MODEL, "--gpu", "NVIDIA-L4OS=8x1"],
        "did you mean L40S? Otherwise add its memory",
    ),
    "number of another GPU": (
        ["--model", MODEL, "--gpu", "NVIDIA-L4S=8x1"],
        "NVIDIA-L4S is not a known GPU; add its memory in MiB, NVIDIA-L4S=8x1:MIB",
    ),
    "another maker": (
        ["--model", MODEL, "--gpu", "MI300X=8x1"],
        "is not a known GPU; add its memory in MiB, MI300X=8x1:MIB",
    ),
    "quite unknown GPU": (["--model", MODEL, "--gpu", "TPU=8x1"], "add its memory in MiB, TPU=8x1:MIB"),
    "half of a name": (
        ["--model", MODEL, "--gpu", "H100=8x1"],
        "did you mean H100-80GB (81559 MiB) or H100-NVL (95830 MiB)? Otherwise",
    ),
    "memory that the CPU uses too": (
        ["--model", MODEL, "--gpu", "GB10=1x1"],
        "NVIDIA-GB10 shares its memory with the CPU; add the MiB that engines may use, GB10=1x1:MIB",
    ),
    "a slice": (
        ["--model", MODEL, "--gpu", f"{H100}-MIG-1g.10gb=7x1:9856"],
        f"{H100}-MIG-1g.10gb is a part of a GPU: add --resource-name nvidia.com/mig-1g.10gb",
    ),
    "a slice of another size than the resource": (
        ["--model", MODEL, "--gpu", f"{H100}-MIG-1g.10gb=7x1", "--resource-name", "nvidia.com/mig-3g.40gb"],
        f"is no slice that --resource-name nvidia.com/mig-3g.40gb names: write {H100} alone",
    ),
    "a shared GPU without its resource": (
        ["--model", MODEL, "--gpu", "A10-SHARED=4x1/4"],
        "A10-SHARED is a part of a GPU: add --resource-name nvidia.com/gpu.shared",
    ),
    "shares of whole GPUs": (
        ["--model", MODEL, "--gpu", "A10=4x1/4"],
        "/4 is for shared GPUs: add --resource-name, for example nvidia.com/gpu.shared",
    ),
    "shares without the number of pods": (
        ["--model", MODEL, "--gpu", "A10=4x1", "--resource-name", "nvidia.com/gpu.shared"],
        "nvidia.com/gpu.shared is a share of a GPU: add how many pods share one, for example A10=4x1/4",
    ),
    "a resource that holds no GPUs": (
        ["--model", MODEL, "--gpu", "A10=4x1", "--resource-name", "nvidia.com/gpumem"],
        "spec.hardware.resourceName: 'nvidia.com/gpumem': must be a resource of NVIDIA's device plugin",
    ),
    "fields against each other": (
        ["--model", MODEL, "--gpu", "L4=8x1", "--tensor", "4", "--max-gpus", "2"],
        "spec: parallelism.tensor is 4, hardware.maxGpusPerReplica is 2: parallelism.tensor must be at most",
    ),
    "no hardware": (["--model", MODEL, "--gpu", "L4"], "--gpu L4: must be PRODUCT=GPUSxNODES, for example L4=8x1"),
    "name": (["--model", "a:b", "--gpu", "L4=8x1"], "spec.model: 'a:b': must not contain a colon"),
    "context": (["--model", MODEL, "--gpu", "L4=8x1", "--context", "0"], "spec.contextTokens: 0 must be at least 1"),
    "cache": (
        ["--model", MODEL, "--gpu", "L4=8x1", "--kv-cache-type", "fp8"],
        "must be one of Auto, BFloat16, Fp8E4m3",
    ),
    "weights alone": (["--model", MODEL, "--gpu", "L4=8x1", "--weight-bytes", "5"], "--weight-bytes needs"),
    "no file": (["-f", "/does/not/exist", "--gpu", "L4=8x1"], "/does/not/exist: cannot be read"),
}


@pytest.mark.parametrize(("words", "says"), BAD.values(), ids=BAD.keys())
def test_bad_options(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    code, out, err = _run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("qwen-operator plan: ")
    assert says in err
    assert err.count("\n") == 1


FILES: dict[str, tuple[str, Any, str]] = {
    "no YAML": ("-f", "a: [", "is not YAML"),
    "no deployment": ("-f", {"kind": "Pod"}, "has 0 objects of kind QwenDeployment (it has Pod), it must have one"),
    "a table of nodes": ("--nodes", "NAME   STATUS\ngpu-1  Ready\n", "holds no Node objects; right would be"),
    "no nodes": ("--nodes", MANIFEST, "holds QwenDeployment, but no Node; right would be the output of `kubectl get"),
    "no text": ("--nodes", b"\xff\xfe", "cannot be read: it is not UTF-8 text"),
    "half of an object": ("--nodes", '{"items": [', "is not YAML"),
    "a number for a text": (
        "--config",
        "engine: {version: 0.6}",
        "file: engine.version is 0.6: it must be a text, in quotes",
    ),
    "options that are no list": ("--config", "engine: {args: --x}", "file: engine.args is '--x': it must be a list"),
    "no hub": ("--config", "hub: {default: huggingface}", "hub.default is 'huggingface': it must be hf or modelscope"),
    "no address": ("--config", "hub: {url: hub.example.org}", "hub.url is 'hub.example.org': it must be an address"),
    "a variable without a name": ("--config", "engine: {env: [A]}", "engine.env[0] is 'A': it must be a mapping"),
    "no spec": ("-f", {"kind": "QwenDeployment", "metadata": {"name": "a"}}, "spec: None must be an object"),
    "no JSON": ("--checkpoint-config", "{", "is not valid JSON: Expecting"),
    "a list": ("--checkpoint-config", "[]", "holds a list, it must hold a JSON object"),
    "not a number": (
        "--checkpoint-config",
        json.dumps({**CONFIG, "hidden_size": float("nan")}),
        "hidden_size is nan, it must be a whole number",
    ),
    "field missing": (
        "--checkpoint-config",
        json.dumps({key: value for key, value in CONFIG.items() if key != "num_hidden_layers"}),
        "num_hidden_layers",
    ),
    "ten megabytes": (
        "--checkpoint-config",
        '{"a": "' + "x" * 10_000_000 + '"}',
        "is larger than 10000000 bytes, which no config",
    ),
    "the last of two": (
        "--checkpoint-config",
        json.dumps(CONFIG)[:-1] + ', "hidden_size": -1}',
        "hidden_size is -1, it must be a whole number",
    ),
    "no end of nesting": ("--checkpoint-config", "[" * 100_000, "is nested too deeply to be read"),
    "nesting without end": ("--config", "[" * 100_000, "nest"),
    "a list of values": ("--config", "- a", "must hold one mapping, the values of the chart"),
    "engine is no mapping": ("--config", "engine: 5", "engine is 5: it must be a mapping"),
    "pools are no list": ("--config", "gpuPools: 5", "gpuPools is 5: it must be a list"),
    "a pool without memory": (
        "--config",
        "gpuPools: [{name: a, product: b}]",
        "gpuPools[0].memoryMiB is missing: it",
    ),
    "a cost that is none": (
        "--config",
        "gpuPools: [{name: a, product: b, memoryMiB: 5, gpusPerNode: 1, costPerGpuHour: much}]",
        "gpuPools[0].costPerGpuHour is 'much'",
    ),
    "two byte order marks": ("--config", "\x00", "is not YAML"),
}


@pytest.mark.parametrize(("option", "content", "says"), FILES.values(), ids=FILES.keys())
def test_bad_files(capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str, content: Any, says: str) -> None:
    path = _write(tmp_path / "file", content)
    what = [] if option == "-f" else ["--model", MODEL]
    code, out, err = _run(capsys, *what, option, path, "--gpu", "L4=8x1")
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


class _Api:
    def __init__(self, nodes: list[dict[str, Any]] | None) -> None:
        self.nodes = nodes

    async def list(self, resource: kube.Resource, namespace: str | None) -> tuple[list[dict[str, Any]], str]:
        if self.nodes is None:
            raise Unavailable(503, "Down", "the server is not there")
        return self.nodes, "1"

    async def aclose(self) -> None:
        return None


@pytest.mark.parametrize(("nodes", "code"), [([NODE], 0), ([], 3), (None, 2)])
def test_without_hardware_the_cluster_is_asked(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[dict[str, Any]] | None,
    code: int,
) -> None:
    async def connect() -> _Api:
        return _Api(nodes)

    monkeypatch.setattr(client, "connect", connect)
    exit_code, out, err = _run(capsys, "--model", MODEL)
    assert exit_code == code
    assert ("give --gpu, --nodes or --config" in err) is (nodes is None)
    assert ("NO PLAN" in out) is (nodes == [])


def test_an_answer_needs_no_heavy_imports() -> None:
    """They are what makes it slow. The time itself depends on the machine, so no test measures it."""
    code = (
        "import sys; from qwen_operator.cli import main; "
        f"main(['plan', '--model', '{MODEL}', '--gpu', 'H100-80GB=8x1']); "
        "print(sorted({name.partition('.')[0] for name in sys.modules} "
        "& {'kopf', 'kubernetes', 'aiohttp', 'httpx', 'yaml', 'asyncio'}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "[]"
