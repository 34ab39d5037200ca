"""The inspection against real folders: complete, broken, hostile, and unreadable for another uid."""

import hashlib
import json
import os
import pickle
import shutil
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_runtime import safetensors
from qwen_runtime.checkpoints.chat import LARGEST_CHAT_FILE, Task, chat_format
from qwen_runtime.inspect_checkpoint import examine
from qwen_runtime.report import LIMIT_BYTES, bounded
from tests.unit.checkpoints import configs
from tests.unit.checkpoints.templates import QWEN3, QWQ
from tests.unit.runtime.checkpoint import CONFIG, checkpoint, header, index, shard

OTHER_UID = 65532
REASONS = {"ModelNotFound", "InvalidConfig", "TruncatedWeights", "UnreadableWeights", "TokenizerMissing"}


def facts(folder: Path) -> dict[str, Any]:
    report, complete = examine(folder)
    assert complete, report
    return report


def error(folder: Path) -> dict[str, Any]:
    report, complete = examine(folder)
    assert not complete, report
    assert set(report) == {"version", "error"}
    reported: dict[str, Any] = report["error"]
    return reported


def test_a_complete_checkpoint_is_reported_in_full(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    digest = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    assert bounded(facts(folder)).decode() == (
        '{"architecture":"Qwen2ForCausalLM","attentionLayers":24,"chat":{"ranks":false,"task":"Generate",'
        '"template":false,"thinking":"Never","tools":"Other"},"configSha256":"' + digest + '","denseLayers":24,'
        '"dtype":"bfloat16","expertIntermediate":null,"experts":null,"files":1,"headDim":64,"heads":16,"hidden":1024,'
        '"idleBytes":0,"intermediate":2816,"kvHeads":8,"kvWeightBytes":0,"layers":24,"linear":null,'
        '"maxPositions":32768,"modelType":"qwen2","multimodal":false,"quantization":null,"replicatedBytes":36,'
        '"rope":null,"sharedIntermediate":null,"tensors":2,"tieWordEmbeddings":true,"tokenizer":true,"version":2,'
        '"vocab":151936,"weightBytes":100}'
    )


def test_the_chat_template_and_the_task_are_reported(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": QWEN3}))
    assert facts(folder)["chat"] == chat_format(QWEN3).to_record()
    (folder / "chat_template.jinja").write_text(QWQ)
    (folder / "1_Pooling").mkdir()
    assert facts(folder)["chat"] == chat_format(QWQ, task=Task.EMBED).to_record()


def test_a_broken_tokenizer_config_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "tokenizer_config.json").write_text("{")
    assert error(folder)["reason"] == "InvalidConfig"
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_bytes(b" " * LARGEST_CHAT_FILE)
    assert "it must have fewer than" in error(folder)["message"]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "modules.json", "chat_template.jinja"])
def test_a_file_that_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    folder = checkpoint(tmp_path)
    os.mkfifo(folder / name)
    assert error(folder)["file"] == name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_key_value_heads": None}, {"kvHeads": 16}),
        ({"head_dim": 128}, {"headDim": 128}),
        ({"torch_dtype": None, "dtype": "float16"}, {"dtype": "float16"}),
        ({"torch_dtype": "half"}, {"dtype": "float16"}),
        ({"torch_dtype": None}, {"dtype": "bfloat16"}),
        ({"tie_word_embeddings": None}, {"tieWordEmbeddings": True}),
        ({"num_experts": 60}, {"experts": 60}),
        ({"num_experts": 0}, {"experts": None}),
        ({"intermediate_size": None, "num_experts": 8, "moe_intermediate_size": 768}, {"intermediate": 768}),
        ({"quantization_config": {}}, {"quantization": None}),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
            {"quantization": {"method": "gptq", "bits": 4, "groupSize": 128, "symmetric": None, "descAct": None}},
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "gptq",
                    "bits": 4,
                    "group_size": 128,
                    "sym": True,
                    "desc_act": False,
                }
            },
            {"quantization": {"symmetric": True, "descAct": False, "block": None, "plain": []}},
        ),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}},
            {"quantization": {"symmetric": False}},
        ),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 8, "group_size": -1}},
            {"quantization": {"method": "awq", "bits": 8, "groupSize": None}},
        ),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
            {"quantization": {"method": "fp8", "bits": 8, "groupSize": None, "block": 128}},
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}},
                }
            },
            {"quantization": {"method": "compressed-tensors", "bits": 4, "groupSize": 32}},
        ),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            {"quantization": {"method": "bitsandbytes", "bits": 4, "groupSize": None}},
        ),
        (
            {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}},
            {"quantization": {"method": "modelopt", "bits": 4, "groupSize": 16}},
        ),
    ],
)
def test_a_config_means_what_engines_take_it_for(
    tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    report = facts(checkpoint(tmp_path, CONFIG | changes))
    if expected.get("quantization"):
        report |= {"quantization": {key: report["quantization"][key] for key in expected["quantization"]}}
    assert {key: report[key] for key in expected} == expected


HYBRID = {
    "architectures": ["Qwen3NextForCausalLM"], "num_experts": 8, "moe_intermediate_size": 384,
    "shared_expert_intermediate_size": 512,
    "linear_num_value_heads": 32, "linear_num_key_heads": 16, "linear_key_head_dim": 128,
    "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4,
}  # fmt: skip
LINEAR = {"layers": 18, "valueHeads": 32, "keyHeads": 16, "keyDim": 128, "valueDim": 64, "convKernel": 4,
          "stateValueBytes": 4}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (HYBRID, {"attentionLayers": 6, "linear": LINEAR, "expertIntermediate": 384, "sharedIntermediate": 512}),
        (HYBRID | {"full_attention_interval": 8}, {"attentionLayers": 3, "linear": LINEAR | {"layers": 21}}),
        (HYBRID | {"mamba_ssm_dtype": "bfloat16"}, {"linear": LINEAR | {"stateValueBytes": 2}}),
        (
            HYBRID | {"layer_types": ["linear_attention", "full_attention"] * 12},
            {"attentionLayers": 12, "linear": LINEAR | {"layers": 12}},
        ),
        (HYBRID | {"shared_expert_intermediate_size": 0}, {"sharedIntermediate": None, "denseLayers": 0}),
        (HYBRID | {"mlp_only_layers": [0, 1], "decoder_sparse_step": 2}, {"denseLayers": 13}),
        ({"vision_config": {}}, {"multimodal": True, "denseLayers": 24, "attentionLayers": 24}),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, {"rope": None}),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32768}},
            {"rope": {"type": "yarn", "factor": 4.0, "originalMaxPositions": 32768}},
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.5}},
            {"rope": {"type": "yarn", "factor": 2.5, "originalMaxPositions": None}},
        ),
    ],
)
def test_facts_of_hybrids_experts_and_long_contexts(
    tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    report = facts(checkpoint(tmp_path, CONFIG | changes))
    assert {key: report[key] for key in expected} == expected
    assert len(bounded(report)) < LIMIT_BYTES / 2


def test_tensors_are_told_apart_by_what_several_gpus_do_with_them(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, CONFIG | {"quantization_config": {"quant_method": "fp8"}})
    sizes = {
        "model.embed_tokens.weight": 1000, "lm_head.weight": 1000, "model.norm.weight": 10,
        "model.layers.0.self_attn.k_proj.weight": 30, "model.layers.0.self_attn.v_proj.bias": 2,
        "model.layers.0.self_attn.o_proj.weight": 60, "model.layers.0.mlp.gate.weight": 8,
        "model.layers.0.mlp.experts.0.gate_proj.weight": 70, "mtp.norm.weight": 4, "model.mtp.fc.weight": 6,
    }  # fmt: skip
    shard(folder / "model.safetensors", sizes)
    report = facts(folder)
    assert (report["weightBytes"], report["idleBytes"]) == (sum(sizes.values()), 1010)
    assert (report["kvWeightBytes"], report["replicatedBytes"]) == (32, 18)
    assert report["quantization"]["plain"] == ["mlp.experts", "self_attn"]
    (folder / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": False}))
    assert facts(folder)["idleBytes"] == 10


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_engines_keep_half_of_a_float32_checkpoint(tmp_path: Path, dtype: str) -> None:
    folder = checkpoint(tmp_path, CONFIG | {"torch_dtype": dtype, "tie_word_embeddings": False})
    sizes = {"model.embed_tokens.weight": 1000, "model.norm.weight": 20, "model.layers.0.self_attn.k_proj.weight": 40}
    shard(folder / "model.safetensors", sizes, "F32")
    report = facts(folder)
    assert (report["weightBytes"], report["idleBytes"]) == (1060, 530)
    assert (report["kvWeightBytes"], report["replicatedBytes"]) == (20, 10)


def test_what_config_leaves_out_is_read_from_the_tensors(tmp_path: Path) -> None:
    silent = {key: value for key, value in CONFIG.items() if key not in ("torch_dtype", "tie_word_embeddings")}
    folder = checkpoint(tmp_path, silent)
    shard(folder / "model.safetensors", {"model.norm.weight": 8, "lm_head.weight": 64}, "F16")
    report = facts(folder)
    assert (report["dtype"], report["tieWordEmbeddings"]) == ("float16", False)


def test_multimodal_configs_keep_the_numbers_in_text_config(tmp_path: Path) -> None:
    text = {key: value for key, value in CONFIG.items() if key not in ("architectures", "tie_word_embeddings")}
    outer: dict[str, Any] = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": text | {"num_hidden_layers": 36},
        "tie_word_embeddings": False,
    }
    report = facts(checkpoint(tmp_path, outer))
    assert (report["architecture"], report["modelType"]) == ("Qwen3VLForConditionalGeneration", "qwen3_vl")
    assert (report["layers"], report["tieWordEmbeddings"]) == (36, False)
    del outer["text_config"]["num_hidden_layers"]
    (tmp_path / "config.json").write_text(json.dumps(outer))
    assert error(tmp_path)["message"] == (
        "config.json: text_config.num_hidden_layers is missing, it must be a whole number from 1 to 4096."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_hidden_layers": 10**9},
            "config.json: num_hidden_layers is 1000000000, it must be a whole number from 1 to 4096.",
        ),
        ({"num_hidden_layers": True}, "config.json: num_hidden_layers is true, it must be a whole number"),
        ({"num_hidden_layers": "24"}, "config.json: num_hidden_layers is '24', it must be a whole number"),
        ({"num_hidden_layers": 24.0}, "config.json: num_hidden_layers is 24.0, it must be a whole number"),
        ({"hidden_size": float("nan")}, "config.json: hidden_size is nan, it must be a whole number"),
        ({"hidden_size": 0}, "config.json: hidden_size is 0, it must be a whole number from 1"),
        ({"hidden_size": 1025}, "config.json: hidden_size is 1025, it must be a multiple of num_attention_heads"),
        ({"vocab_size": [1]}, "config.json: vocab_size is a list, it must be"),
        ({"num_key_value_heads": 5}, "config.json: num_key_value_heads is 5, it must be a divisor of"),
        ({"num_key_value_heads": 32}, "config.json: num_key_value_heads is 32, it must be a whole number"),
        ({"torch_dtype": "int8"}, "config.json: torch_dtype is 'int8', it must be one of bfloat16,"),
        ({"tie_word_embeddings": 1}, "config.json: tie_word_embeddings is 1, it must be true or false."),
        ({"architectures": []}, "config.json: architectures is a list, it must be a list with the name"),
        ({"architectures": ["a b"]}, "config.json: architectures[0] is 'a b', it must be a name of letters"),
        ({"model_type": None}, "config.json: model_type is null, it must be a name of letters"),
        ({"quantization_config": "gptq"}, "config.json: quantization_config is 'gptq', it must be an object."),
        (
            HYBRID | {"linear_num_key_heads": -1},
            "config.json: linear_num_key_heads is -1, it must",
        ),
        (HYBRID | {"layer_types": ["full_attention"]}, "config.json: layer_types is a list, it must be a list of 24"),
        (HYBRID | {"mamba_ssm_dtype": "int4"}, "config.json: mamba_ssm_dtype is 'int4', it must be one of float32,"),
        (HYBRID | {"mlp_only_layers": 3}, "config.json: mlp_only_layers is 3, it must be a list of layer numbers."),
        ({"rope_scaling": {"factor": 0.1}}, "config.json: rope_scaling.factor is 0.1, it must be a number from 1 to"),
        (
            {"rope_scaling": {"factor": 2, "type": 7}},
            "config.json: rope_scaling.type is 7, it must be a name of letters",
        ),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "config.json: quantization_config.bits is missing, it must be a whole number from 1 to 16.",
        ),
    ],
)
def test_an_implausible_field_is_named_with_its_value_and_what_is_right(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    fault = error(checkpoint(tmp_path, CONFIG | changes))
    assert fault["reason"] == "InvalidConfig"
    assert fault["file"] == "config.json"
    assert fault["message"].startswith(message)


def test_numbers_of_millions_of_digits_are_refused_at_once(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    text = json.dumps(CONFIG).replace("32768", "9" * 5_000_000)
    (folder / "config.json").write_text(text)
    assert error(folder)["message"].startswith("config.json: max_position_embeddings is inf, it must be")


def replace(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def as_adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "config.json").rename(folder / "adapter_config.json")


def as_axolotl_adapter(folder: Path) -> None:
    """The output folder of a LoRA run of Axolotl: the config of the base model lies beside the adapter."""
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"PK")
    (folder / "checkpoint-100").mkdir()


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def as_fifo(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def as_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tiny-q8_0.gguf")
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "reason", "message"),
    [
        (remove("config.json"), "ModelNotFound", "config.json is missing from"),
        (replace("config.json", b'{"hidd'), "InvalidConfig", "config.json is not valid JSON: Unterminated string"),
        (replace("config.json", b"\xff\xfe\xfd"), "InvalidConfig", "config.json is not valid"),
        (replace("config.json", b"[" * 200_000), "InvalidConfig", "config.json is nested too deeply"),
        (replace("config.json", b"[1]"), "InvalidConfig", "config.json holds a list, it must hold a JSON object."),
        (replace("config.json", b" " * 10_000_000), "InvalidConfig", "config.json has 10000000 bytes; it must have"),
        (as_fifo, "InvalidConfig", "config.json must be a regular file"),
        (as_gguf, "ModelNotFound", "{folder} holds GGUF files: set spec.source.file to one of them, for example"),
        (
            as_adapter,
            "ModelNotFound",
            "{folder} holds a LoRA adapter (adapter_config.json) and no model: merge it into",
        ),
        (
            as_axolotl_adapter,
            "ModelNotFound",
            "{folder} holds a LoRA adapter (adapter_config.json) and no model: merge it into",
        ),
        (remove("model.safetensors"), "ModelNotFound", "{folder} has no *.safetensors file."),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "ModelNotFound",
            "{folder} has no *.safetensors file, only 'pytorch_model.bin'; convert it to safetensors.",
        ),
        (
            lambda folder: index(folder, {"a": "model-00001-of-00002.safetensors"}),
            "ModelNotFound",
            "model-00001-of-00002.safetensors is missing from {folder}.",
        ),
        (
            lambda folder: index(folder, {"a": "../model.safetensors"}),
            "InvalidConfig",
            "weight_map['a'] in model.safetensors.index.json is '../model.safetensors'; it must name",
        ),
        (
            lambda folder: index(folder, {"a": 7}),
            "InvalidConfig",
            "weight_map['a'] in model.safetensors.index.json is 7",
        ),
        (lambda folder: index(folder, {}), "InvalidConfig", "weight_map in model.safetensors.index.json is an object"),
        (replace("model.safetensors", header({})), "ModelNotFound", "The *.safetensors files of {folder} hold no"),
        (
            replace("model.safetensors", (10**8 + 1).to_bytes(8, "little") + b"{}"),
            "InvalidConfig",
            "model.safetensors is not a safetensors file: its header length is 100000001;",
        ),
        (replace("model.safetensors", b"\2" + bytes(7) + b"[]"), "InvalidConfig", "the header of model.safetensors"),
        (
            replace("model.safetensors", header({"a": 8}).replace(b"[0, 8]", b"[1, 8]") + bytes(8)),
            "InvalidConfig",
            "The header of model.safetensors is malformed: its tensors' data_offsets overlap or leave a gap at byte 0",
        ),
        (
            replace("model.safetensors", header({"a": 8}).replace(b"[0, 8]", b"[-1,8]")),
            "InvalidConfig",
            "The header of model.safetensors is malformed: tensor 'a' must have",
        ),
        (remove("tokenizer.json"), "TokenizerMissing", "{folder} has no tokenizer; it must hold tokenizer.json,"),
        (replace("tokenizer.json", b""), "TokenizerMissing", "tokenizer.json is empty;"),
    ],
)
def test_a_broken_folder_is_refused_with_one_sentence(
    tmp_path: Path, damage: Callable[[Path], object], reason: str, message: str
) -> None:
    folder = checkpoint(tmp_path)
    damage(folder)
    fault = error(folder)
    assert fault["reason"] == reason
    assert fault["message"].startswith(message.replace("{folder}", str(folder)))


def test_the_path_itself_may_be_wrong(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    missing = error(tmp_path / "typo")
    assert missing["reason"] == "ModelNotFound"
    assert missing["message"].startswith(f"{tmp_path}/typo does not exist")
    assert error(folder / "config.json")["message"].endswith("is a file; the model must be a folder.")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert error(tmp_path / "x.gguf")["reason"] == "TruncatedWeights"
    assert error(Path("/bad\0name"))["reason"] == "UnreadableWeights"


class Whole(NamedTuple):
    """A whole file: its bytes, and the bytes of its header without the length field."""

    size: int
    header: int


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: (whole.size, whole.size * 2 // 3),
        lambda whole: (whole.size, whole.size - 1),
        lambda whole: (whole.size, whole.size + 1),
        lambda whole: (8 + whole.header, 8 + whole.header - 1),
        lambda whole: (8 + whole.header, 8),
        lambda _whole: (8, 7),
        lambda _whole: (8, 0),
    ],
)
def test_a_file_of_the_wrong_size_is_named_with_bytes_wanted_and_found(
    tmp_path: Path, damage: Callable[[Whole], tuple[int, int]]
) -> None:
    folder = checkpoint(tmp_path)
    index(folder, {"a": "model.safetensors", "b": "second.safetensors"})
    damaged = shard(folder / "second.safetensors", {"b": 3000})
    start = damaged.read_bytes()[:8]
    wanted, found = damage(Whole(damaged.stat().st_size, int.from_bytes(start, "little")))
    os.truncate(damaged, found)
    fault = error(folder)
    assert (fault["reason"], fault["file"]) == ("TruncatedWeights", "second.safetensors")
    assert (fault["bytesWanted"], fault["bytesFound"]) == (wanted, found)
    assert f"{wanted} bytes wanted, {found} bytes found" in fault["message"]


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n"
    (folder / "model.safetensors").write_bytes(pointer)
    fault = error(folder)
    assert (fault["reason"], fault["bytesWanted"], fault["bytesFound"]) == ("TruncatedWeights", 988097824, len(pointer))
    assert "git-lfs" in fault["message"]


def test_links_are_followed_as_a_hub_cache_has_them(tmp_path: Path) -> None:
    blobs = checkpoint(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert facts(snapshot) == facts(blobs)
    (blobs / "model.safetensors").unlink()
    fault = error(snapshot)
    assert (fault["reason"], fault["file"]) == ("ModelNotFound", "model.safetensors")
    assert "it is a link to ../../blobs/model.safetensors, which does not exist" in fault["message"]


def test_only_the_files_of_the_index_count(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    shard(folder / "model-00001-of-00002.safetensors", {"a": 10})
    shard(folder / "model-00002-of-00002.safetensors", {"b": 20, "c": 30})
    assert facts(folder)["weightBytes"] == 160
    index(folder, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    report = facts(folder)
    assert (report["files"], report["tensors"], report["weightBytes"]) == (2, 3, 60)


def test_tensor_data_is_never_read(tmp_path: Path) -> None:
    """A sparse shard of 1 TiB: reading it would take far longer than the time limit of a test."""
    folder = checkpoint(tmp_path)
    start = header({"model.norm.weight": 2**40})
    (folder / "model.safetensors").write_bytes(start)
    os.truncate(folder / "model.safetensors", len(start) + 2**40)
    assert facts(folder)["weightBytes"] == 2**40


@pytest.mark.parametrize("files", [["tokenizer.model"], ["vocab.json", "merges.txt"]])
def test_other_tokenizers_count_when_complete(tmp_path: Path, files: list[str]) -> None:
    folder = checkpoint(tmp_path)
    (folder / "tokenizer.json").unlink()
    for name in files:
        assert error(folder)["reason"] == "TokenizerMissing"
        (folder / name).write_text("x")
    assert facts(folder)["tokenizer"] is True


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that other uids can reach, which pytest's own temporary folders are not."""
    folder = Path(tempfile.mkdtemp(prefix="qwen-runtime-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_engine_uid(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `action` in a process that may not bypass file modes; root really changes to another uid."""
    if os.geteuid() != 0:
        return action()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(OTHER_UID)
            os.setuid(OTHER_UID)
            os.write(write, pickle.dumps(action()))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as result:
        data = result.read()
    os.waitpid(child, 0)
    outcome: dict[str, Any] = pickle.loads(data)
    return outcome


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_this_uid_may_not_open_is_reported_with_the_cure(shared_folder: Path, name: str) -> None:
    folder = checkpoint(shared_folder / "m")
    root = os.geteuid() == 0
    assert as_engine_uid(lambda: facts(folder))["files"] == 1
    (folder / name).chmod(0o600 if root else 0)
    fault = as_engine_uid(lambda: error(folder))
    assert (fault["reason"], fault["file"]) == ("UnreadableWeights", name)
    mode = "0600" if root else "0000"
    uid = OTHER_UID if root else os.geteuid()
    assert fault["message"] == (
        f"{name} cannot be opened by uid {uid}: its mode is {mode} and its owner is uid {os.geteuid()}; "
        "run chmod a+r on it, and chmod a+rx on the folders above it."
    )


def test_a_folder_that_this_uid_may_not_list_is_reported(shared_folder: Path) -> None:
    folder = checkpoint(shared_folder / "m")
    folder.chmod(0o711 if os.geteuid() == 0 else 0o111)
    fault = as_engine_uid(lambda: error(folder))
    folder.chmod(0o755)
    assert fault["reason"] == "UnreadableWeights"
    assert "cannot be listed by uid" in fault["message"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
quantizations = st.dictionaries(
    st.sampled_from(["quant_method", "bits", "group_size", "config_groups", "weight_block_size", "quant_algo"]),
    json_values | st.sampled_from(["gptq", "compressed-tensors", "fp8", "modelopt", "bitsandbytes"]),
)
changed_configs = st.dictionaries(
    st.sampled_from(
        [*CONFIG, *HYBRID, "text_config", "quantization_config", "head_dim", "layer_types", "rope_scaling"]
    ),
    json_values | quantizations,
    max_size=3,
).map(lambda changes: json.dumps(CONFIG | changes).encode())
changed_headers = st.dictionaries(
    st.text(max_size=6),
    json_values
    | st.fixed_dictionaries({"dtype": st.just("BF16"), "data_offsets": st.lists(st.integers(-1, 9), max_size=3)}),
    max_size=3,
).map(lambda entries: (text := json.dumps(entries).encode()) and len(text).to_bytes(8, "little") + text)


@settings(max_examples=150, deadline=None)
@given(
    config=st.just(json.dumps(CONFIG).encode()) | changed_configs | st.binary(max_size=60),
    weights=st.just(header({"a": 0})) | changed_headers | st.binary(max_size=60),
    weight_index=st.none() | st.binary(max_size=20) | json_values.map(lambda v: json.dumps({"weight_map": v}).encode()),
)
def test_whatever_is_in_the_folder_the_report_is_bounded_json(
    config: bytes, weights: bytes, weight_index: bytes | None
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = checkpoint(Path(name))
        (folder / "config.json").write_bytes(config)
        (folder / "model.safetensors").write_bytes(weights)
        if weight_index is not None:
            (folder / "model.safetensors.index.json").write_bytes(weight_index)
        report, complete = examine(folder)
    data = bounded(report)
    assert len(data) <= LIMIT_BYTES
    assert json.loads(data)["version"] == (2 if complete else 1)
    assert complete or report["error"]["reason"] in REASONS


def test_a_large_header_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    name = b"model.layers.0.mlp.experts.%d.down_proj.weight"
    entry = b'"' + name + b'":{"dtype":"BF16","shape":[1],"data_offsets":[%d,%d]}'
    padding = b'"__metadata__":{"format":"' + b"x" * 3_000_000 + b'"}'
    text = b"{" + b",".join([padding, *(entry % (one, one, one + 1) for one in range(5_000))]) + b"}"
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(5_000))
    tracemalloc.start()
    try:
        report = facts(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report["tensors"] == 5_000
    assert peak < 24_000_000


def test_a_checkpoint_of_too_many_tensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path)
    monkeypatch.setattr(safetensors.Room.__init__, "__defaults__", (3, 1000))
    shard(folder / "model-2.safetensors", {"a": 2, "b": 2})
    fault = error(folder)
    assert fault["reason"] == "InvalidConfig"
    assert "is too large: its checkpoint has more than 400000 tensors" in fault["message"]


def test_a_member_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    text = b'{"__metadata__":{"a":"' + b"x" * 5_000_000 + b'"}}'
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert "one of its members has more than 4194304 bytes" in error(folder)["message"]


# Its class reads both.
STACKING = configs.HYBRID | {"architectures": ["Qwen3_5MoeForCausalLM"], "text_config": configs.HYBRID}
STACKED = ("model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj")


@pytest.mark.parametrize("name", STACKED)
@pytest.mark.parametrize(
    ("config", "read"), [(configs.MOE, False), (configs.HYBRID, False), (STACKING, True), (CONFIG, True)]
)
def test_experts_in_one_tensor_are_refused_where_engines_read_single_ones(
    tmp_path: Path, config: dict[str, Any], read: bool, name: str
) -> None:
    folder = checkpoint(tmp_path, config)
    shard(folder / "model-2.safetensors", {name: 64})
    if read:
        assert facts(folder)["files"] == 2
        return
    fault = error(folder)
    assert (fault["reason"], fault["message"].startswith(f"'{name}' has all experts")) == ("InvalidConfig", True)
    assert "merge again with merge_method: legacy" in fault["message"]


def recorded(name: str, folder: Path) -> Path:
    """A folder that a tool has written, with a tokenizer of nothing and weights of zeros, readable for everyone."""
    shutil.copytree(Path(__file__).parent / "data" / "merged" / name, folder)
    head = (folder / "model.safetensors.header").read_bytes()
    (folder / "model.safetensors.header").unlink()
    tensors = json.loads(head[8:])
    size = max(tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__")
    (folder / "model.safetensors").write_bytes(head + bytes(size))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_what_llama_factory_exports_is_read(tmp_path: Path) -> None:
    report = facts(recorded("llamafactory-0.9.5", tmp_path / "a"))
    read = {name: report[name] for name in ("architecture", "layers", "hidden", "weightBytes", "experts")}
    assert read == {
        "architecture": "Qwen2ForCausalLM",
        "layers": 2,
        "hidden": 128,
        "weightBytes": 854_272,
        "experts": None,
    }
    assert report["chat"]["template"]


def test_what_axolotl_merges_of_a_model_with_experts_is_refused(tmp_path: Path) -> None:
    folder = recorded("axolotl-0.19.0-experts", tmp_path / "a")
    assert "model.layers.0.mlp.experts.down_proj' has all experts" in error(folder)["message"]
    # With single experts, the same config is right: it names their number as transformers 5 does.
    shard(folder / "model.safetensors", {"model.layers.0.mlp.experts.0.down_proj.weight": 64})
    assert facts(folder)["experts"] == 4


# What lies in the folder of a merged model beside config, tokenizer and weights. These names were collected by hand.
LEFT_BY = {
    "PEFT": ("generation_config.json", "tokenizer_config.json"),
    "LLaMA-Factory": ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "Modelfile"),
    "LLaMA-Factory, full training": (
        "trainer_state.json",
        "train_results.json",
        "training_args.bin",
        "trainer_log.jsonl",
    ),
    "Axolotl, merged over its adapter": ("adapter_config.json", "adapter_model.safetensors", "README.md"),
    "an adapter in the old format": ("adapter_config.json", "adapter_model.bin"),
    "both formats": ("pytorch_model.bin",),
    "a resumed training": ("optimizer.pt", "scheduler.pt", "rng_state.pth", "checkpoint-100/model.safetensors"),
}


@pytest.mark.parametrize("left", LEFT_BY.values(), ids=LEFT_BY)
@pytest.mark.parametrize("sharded", [False, True])
def test_what_trainers_leave_beside_a_merged_model_changes_nothing(
    tmp_path: Path, left: tuple[str, ...], sharded: bool
) -> None:
    plain, folder = checkpoint(tmp_path / "plain"), checkpoint(tmp_path / "left")
    for one in (plain, folder):
        if sharded:
            name = "model-00001-of-00001.safetensors"
            (one / "model.safetensors").rename(one / name)
            index(one, {"model.embed_tokens.weight": name, "model.norm.weight": name})
    for name in left:
        (folder / name).parent.mkdir(exist_ok=True)
        if name.endswith(".safetensors"):
            shard(folder / name, {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": 640})
        else:
            (folder / name).write_text("{}")
    assert examine(folder) == examine(plain)
    assert examine(folder)[1]
