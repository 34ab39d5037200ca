"""The inspection of GGUF files: complete, mixed, split, cut off and hostile."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_operator.checkpoints import records
from qwen_runtime.checkpoints import gguf
from qwen_runtime.checkpoints.reading import InvalidFactsError
from qwen_runtime.inspect_checkpoint import examine
from qwen_runtime.report import LIMIT_BYTES, bounded
from tests.unit.runtime.gguf_files import HIDDEN, KV, QUERY, TEMPLATE, VOCAB, WIDTH, File, qwen2, qwen3, text

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 1,
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "vocab_size": VOCAB,
    "tie_word_embeddings": False,
}


def facts(path: Path) -> dict[str, Any]:
    report, complete = examine(path)
    assert complete, report
    assert len(bounded(report)) < LIMIT_BYTES
    return report


def error(path: Path) -> dict[str, Any]:
    report, complete = examine(path)
    assert not complete, report
    reported: dict[str, Any] = report["error"]
    return reported


def changed(change: Callable[[File], object]) -> File:
    file = qwen2()
    change(file)
    return file


def test_a_file_is_reported_with_its_types(tmp_path: Path) -> None:
    report = facts(qwen2("Q4_K", attn_v="Q6_K", output="Q6_K").write(tmp_path / "model.gguf"))
    read = records.from_inspection(report)
    assert (read.architecture, read.layers, read.hidden, read.heads, read.kv_heads) == (
        "Qwen2ForCausalLM", 1, HIDDEN, 4, 2,
    )  # fmt: skip
    assert (read.intermediate, read.vocab, read.max_positions, read.tied, read.dtype) == (
        WIDTH, VOCAB, 32768, False, "float16",
    )  # fmt: skip
    row = {"Q4_K": 144, "Q6_K": 210}
    matrices = row["Q4_K"] * (VOCAB + QUERY + KV + HIDDEN + 2 * WIDTH + 2 * HIDDEN) + row["Q6_K"] * (VOCAB + KV)
    small = 4 * (3 * HIDDEN + QUERY + 2 * KV)
    assert read.quantization is not None
    assert read.quantization_name == "gguf 4 bit"
    assert dict(read.quantization.types) == {
        "Q4_K": row["Q4_K"] * (VOCAB + QUERY + KV + HIDDEN + 2 * WIDTH + 2 * HIDDEN),
        "Q6_K": row["Q6_K"] * (VOCAB + KV),
        "F32": small,
    }
    # Q and K are stored in 4 bits, but SGLang gives their rows the length of those of V.
    padding = (row["Q6_K"] - row["Q4_K"]) * (QUERY + KV)
    assert read.weight_bytes == matrices + padding + small // 2
    assert read.chat is not None
    assert read.chat.template
    assert records.from_json(json.loads(json.dumps(read.to_json()))) == read


def test_a_qwen3_has_the_head_width_that_sglang_takes(tmp_path: Path) -> None:
    file = qwen3()
    report = facts(file.write(tmp_path / "model.gguf"))
    assert (report["architecture"], report["headDim"], report["tieWordEmbeddings"]) == ("Qwen3ForCausalLM", 128, True)
    file.values["qwen3.attention.key_length"] = 64
    message = error(file.write(tmp_path / "model.gguf"))["message"]
    assert "qwen3.attention.key_length is 64, but SGLang takes 128" in message


def test_a_config_beside_the_file_counts_as_it_does_for_the_engine(tmp_path: Path) -> None:
    path = qwen2().write(tmp_path / "model.gguf")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    report = facts(path)
    assert (report["maxPositions"], report["dtype"]) == (131072, "bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 2}))
    assert "num_hidden_layers in config.json beside model.gguf is 2, but the file has 1" in error(path)["message"]
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"hidden_size": -1}))
    assert error(path)["message"].startswith("config.json beside model.gguf: hidden_size is -1, it must be a whole")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": {"quant_method": "awq"}}))
    assert "keep the GGUF file in a folder of its own" in error(path)["message"]


def test_a_tokenizer_beside_the_file_counts_as_it_does_for_the_engine(tmp_path: Path) -> None:
    file = changed(lambda file: file.values.pop("tokenizer.ggml.model"))
    file.values["qwen2.vocab_size"] = VOCAB
    path = file.write(tmp_path / "model.gguf")
    assert error(path)["reason"] == "TokenizerMissing"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    assert facts(path)["chat"]["template"]


def test_the_scaling_of_a_file_extends_no_context(tmp_path: Path) -> None:
    file = changed(lambda file: file.values.update({"qwen2.rope.scaling.original_context_length": 8192}))
    assert facts(file.write(tmp_path / "model.gguf"))["maxPositions"] == 8192


@pytest.mark.parametrize(
    ("file", "refused"),
    [
        (qwen2("F16"), ""),
        (qwen2("Q8_0"), ""),
        (qwen2("Q2_K", attn_v="IQ4_NL"), ""),
        (qwen2("BF16"), "its tensor token_embd.weight has the type BF16, it must have F16 or a type such as Q8_0"),
        (qwen2("F32"), "its tensor token_embd.weight has the type F32, it must have F16 or a type such as Q8_0"),
        (qwen2("Q4_K", ffn_down="TQ2_0"), "its tensor blk.0.ffn_down.weight has the type TQ2_0"),
        (qwen2("F16", attn_v="Q8_0"), "only some of blk.0.attn_q.weight, blk.0.attn_k.weight, blk.0.attn_v.weight"),
        (
            changed(lambda file: file.tensors.update({"output_norm.weight": ("F16", (HIDDEN,))})),
            "its tensor output_norm.weight has the type F16, it must have F32",
        ),
    ],
)
def test_types_without_a_kernel_are_told(tmp_path: Path, file: File, refused: str) -> None:
    quantization = records.from_inspection(facts(file.write(tmp_path / "model.gguf"))).quantization
    assert quantization is not None
    assert quantization.refused.startswith(refused)
    assert bool(quantization.refused) == bool(refused)


@pytest.mark.parametrize(
    ("file", "reason", "message"),
    [
        (
            changed(lambda file: file.values.update({"split.count": 4})),
            "InvalidConfig",
            "is one of 4 parts of a split file: name the first part, whose name ends in -00001-of-00004.gguf",
        ),
        (
            changed(lambda file: file.values.update({"general.architecture": "qwen2moe"})),
            "UnknownArchitecture",
            "has the architecture 'qwen2moe': of GGUF files, the operator serves qwen2 and qwen3",
        ),
        (
            changed(lambda file: file.values.pop("qwen2.block_count")),
            "InvalidConfig",
            "qwen2.block_count is missing, it must be a whole number from 1 to 4096.",
        ),
        (
            changed(lambda file: file.tensors.pop("blk.0.ffn_up.weight")),
            "InvalidConfig",
            "model.gguf has no tensor blk.0.ffn_up.weight: convert the model again.",
        ),
        (
            changed(lambda file: file.tensors.update({"blk.0.ffn_up.weight": ("Q4_K", (HIDDEN, 64))})),
            "InvalidConfig",
            "the tensor blk.0.ffn_up.weight is 256 x 64, it must be 256 x 512.",
        ),
        (
            changed(lambda file: file.tensors.update({"blk.0.ffn_up.weight": ("Q4_K", (100, 64))})),
            "InvalidConfig",
            "the row of blk.0.ffn_up.weight is 100, it must be a multiple of 256, the block of Q4_K.",
        ),
        (changed(lambda file: file.tensors.clear()), "ModelNotFound", "model.gguf holds no tensors."),
        (
            changed(lambda file: setattr(file, "version", 1)),
            "InvalidConfig",
            "version is 1, it must be 2 or 3, in little-endian order.",
        ),
        (
            changed(lambda file: file.values.update({"general.alignment": 24})),
            "InvalidConfig",
            "general.alignment is 24, it must be a power of two up to 1048576.",
        ),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path: Path, file: File, reason: str, message: str) -> None:
    reported = error(file.write(tmp_path / "model.gguf"))
    assert (reported["reason"], reported["file"]) == (reason, "model.gguf")
    assert message in reported["message"]


def test_a_file_that_is_cut_off_is_named_with_both_sizes(tmp_path: Path) -> None:
    whole = qwen2().bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(whole[:-1])
    reported = error(path)
    assert reported["reason"] == "TruncatedWeights"
    assert (reported["bytesWanted"], reported["bytesFound"]) == (len(whole), len(whole) - 1)
    assert reported["message"] == (
        f"model.gguf is cut off: its tensor blk.0.ffn_down.weight ends at byte {len(whole)}, and the file has "
        f"{len(whole) - 1} bytes; copy or download it again."
    )
    for end in (6, 20, 200, 3000, len(qwen2().header()) - 100):
        path.write_bytes(whole[:end])
        assert error(path)["reason"] == "TruncatedWeights", end


PARTS = qwen2().split(4, 4, 9)
FIRST, SECOND, _, LAST = PARTS


def parts(folder: Path, **changes: bytes) -> Path:
    """The first of four parts. Some of them are other bytes."""
    for name, content in (PARTS | changes).items():
        (folder / name).write_bytes(content)
    return folder / FIRST


def test_the_parts_of_a_split_file_are_read_as_the_whole(tmp_path: Path) -> None:
    whole = facts(qwen2().write(tmp_path / "model.gguf"))
    report, complete = examine(parts(tmp_path), to_join=True)
    assert complete, report
    assert report["files"] == 4
    same = {"files", "configSha256"}
    assert {key: one for key, one in report.items() if key not in same} == {
        key: one for key, one in whole.items() if key not in same
    }


def test_the_parts_on_a_claim_must_be_joined_by_the_user(tmp_path: Path) -> None:
    reported = error(parts(tmp_path))
    assert (reported["reason"], reported["file"]) == ("InvalidConfig", FIRST)
    assert reported["message"].startswith(
        f"{FIRST} is one of 4 parts of a split file, and SGLang opens only one file: join them with "
        f"llama-gguf-split --merge {FIRST} model.gguf, and set spec.source.file to the new file."
    )


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        ({LAST: PARTS[LAST][:-1]}, "TruncatedWeights", f"{LAST} is cut off: its tensor blk.0.ffn_down.weight ends at"),
        ({SECOND: PARTS[SECOND][:30]}, "TruncatedWeights", f"{SECOND} is cut off in the length of a metadata key"),
        ({SECOND: PARTS[LAST]}, "InvalidConfig", f"{SECOND}: split.no is 3, it must be 1 as in its name"),
        (
            {SECOND: qwen2().split(4, name="model")["model-00002-of-00002.gguf"]},
            "InvalidConfig",
            f"{SECOND}: split.count is 2, it must be 4 as in its name",
        ),
        ({LAST: qwen2().bytes()}, "InvalidConfig", f"{LAST}: split.count is 1, it must be 4 as in its name"),
    ],
)
def test_a_part_that_is_broken_or_of_another_file_is_named(
    tmp_path: Path, changes: dict[str, bytes], reason: str, message: str
) -> None:
    reported = error(parts(tmp_path, **changes))
    assert reported["reason"] == reason
    assert reported["message"].startswith(message)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first = parts(tmp_path)
    (tmp_path / LAST).unlink()
    reported = error(first)
    assert (reported["reason"], reported["message"]) == ("ModelNotFound", f"{LAST} is missing from {tmp_path}.")


def test_parts_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    one, other = qwen2().split(9), qwen2().split(8)
    names = list(one)
    for content, message in (
        ([one[names[0]], other[names[1]]], f"{names[1]} has the tensor blk.0.attn_q.weight, which an earlier part has"),
        ([other[names[0]], one[names[1]]], f"the 2 parts of {names[0]} have 14 tensors, and {names[0]} says 15"),
    ):
        for name, part in zip(names, content, strict=True):
            (tmp_path / name).write_bytes(part)
        assert error(tmp_path / names[0])["message"].startswith(message)


def test_what_stands_in_for_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    assert "model.gguf is missing from" in error(path)["message"]
    path.write_bytes(b"not a model at all")
    assert "model.gguf is no GGUF file: it begins with b'not '" in error(path)["message"]
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 4767104224\n")
    assert "run git lfs pull" in error(path)["message"]
    path.unlink()
    path.mkdir()
    assert "must be a regular file" in error(path)["message"]
    path.rmdir()
    os.mkfifo(path)
    assert "must be a regular file" in error(path)["message"]


def raw(*parts: bytes, tensors: int = 0, entries: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + b"".join(parts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (raw(entries=1 << 60), "the number of metadata entries is 1152921504606846976, it must be at most 10000"),
        (raw(tensors=1 << 60), "the number of tensors is 1152921504606846976, it must be at most 100000"),
        (raw(struct.pack("<Q", 1 << 62)), "the length of a metadata key is"),
        (raw(text("a") + struct.pack("<IQ", 8, 1 << 62)), "the length of a text is"),
        (raw(text("a") + struct.pack("<IIQ", 9, 8, 1 << 40)), "the length of a list is"),
        (raw(text("a") + struct.pack("<IIQ", 9, 9, 2)), "the type of a list's values is 9, it must be"),
        (raw(text("a") + struct.pack("<I", 13)), "the type of a metadata value is 13, it must be"),
        (raw((text("a") + struct.pack("<II", 4, 1)) * 2, entries=2), "has the metadata key 'a' twice"),
        (raw(struct.pack("<Q", 1) + b"\xff"), "a metadata key is not UTF-8 text"),
        (
            raw(
                (text("a") + struct.pack("<IIQ", 9, 0, 1_500_000) + bytes(1_500_000))
                + text("b")
                + struct.pack("<IIQ", 9, 0, 1_500_000),
                entries=2,
            ),
            "the number of entries of all lists is 3000000, it must be at most 2000000",
        ),
        (raw(text("a\nb"), tensors=1, entries=0), "a tensor's name is 'a\\nb', it must be made of letters"),
        (raw(text("t") + struct.pack("<I", 9), tensors=1, entries=0), "the number of dimensions of t is 9"),
        (raw(text("t") + struct.pack("<IQIQ", 1, 32, 99, 0), tensors=1, entries=0), "the type of t is 99"),
        (raw(text("t") + struct.pack("<IQIQ", 1, 0, 0, 0), tensors=1, entries=0), "the shape of t is '0'"),
        (
            raw(text("t") + struct.pack("<IQQIQ", 2, 1 << 39, 1 << 39, 0, 0), tensors=1, entries=0),
            "the shape of t is '549755813888 x 549755813888'",
        ),
        (raw(text("t") + struct.pack("<IQIQ", 1, 32, 0, 1 << 60), tensors=1, entries=0), "the offset of t is"),
    ],
)
def test_hostile_headers_are_refused_with_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    reported = error(path)
    assert reported["reason"] == "InvalidConfig"
    assert message in reported["message"]


def test_a_header_has_a_limit(tmp_path: Path) -> None:
    many = raw(text("a") + struct.pack("<IIQ", 9, 8, 1000) + text("x" * 100) * 1000)
    with pytest.raises(InvalidFactsError, match="has a header of more than 10000 bytes"):
        gguf.read_header(_reading(many), "model.gguf", limit=10000)


def _reading(content: bytes) -> gguf.Read:
    position = 0

    def read(count: int) -> bytes:
        nonlocal position
        position += count
        return content[position - count : position]

    return read


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 2000), change=st.binary(min_size=1, max_size=8))
def test_no_change_of_a_header_makes_the_inspection_fail_in_another_way(
    tmp_path_factory: pytest.TempPathFactory, at: int, change: bytes
) -> None:
    whole = bytearray(qwen2("Q8_0").bytes())
    whole[at : at + len(change)] = change
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    path.write_bytes(whole)
    report, complete = examine(path)
    assert complete or report["error"]["message"].endswith(".")
    if complete:
        records.from_inspection(report)
