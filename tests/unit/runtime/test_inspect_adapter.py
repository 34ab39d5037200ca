"""The inspection of LoRA adapters: the facts of real files, and a sentence for each fault."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_runtime.__main__ import main
from qwen_runtime.checkpoints.adapter import AdapterFacts
from qwen_runtime.checkpoints.reading import InvalidFactsError
from qwen_runtime.inspect_checkpoint import examine
from qwen_runtime.report import LIMIT_BYTES, bounded
from tests.unit.runtime.adapter_files import ATTENTION, MLP, WIDTHS, adapter, shapes, weights
from tests.unit.runtime.checkpoint import checkpoint


def error(folder: Path) -> dict[str, Any]:
    report, complete = examine(None, [("support", folder)])
    assert not complete, report
    found: dict[str, Any] = report["error"]
    return found


def test_the_facts_of_a_model_and_its_adapters(tmp_path: Path) -> None:
    folders = [("a", adapter(tmp_path / "a")), ("b", adapter(tmp_path / "b", 16, (*ATTENTION, *MLP)))]
    report, complete = examine(checkpoint(tmp_path / "base"), folders)
    assert complete
    assert report["layers"] == 24
    first, second = (AdapterFacts.from_record(record) for record in report["adapters"])
    assert (first.rank, first.modules, first.layers) == (8, ATTENTION, 2)
    assert (first.hidden, first.query, first.key_value, first.intermediate) == (*WIDTHS[:3], 0)
    assert (second.rank, second.modules, second.intermediate) == (16, (*ATTENTION, *MLP), WIDTHS[3])
    assert second.weight_bytes > first.weight_bytes > 0


def test_the_most_adapters_fit_into_a_report(tmp_path: Path) -> None:
    one = adapter(tmp_path / "a", 256, (*ATTENTION, *MLP))
    report, complete = examine(checkpoint(tmp_path / "base"), [("n" * 40, one)] * 16)
    assert complete
    assert len(bounded(report)) <= LIMIT_BYTES


def test_the_command_reads_adapters_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = adapter(tmp_path / "with=sign")
    assert main(["inspect", f"--adapter=a={folder}", "--adapter", f"b={folder}", "--output", str(tmp_path / "o")]) == 0
    assert len(json.loads(capsys.readouterr().out)["adapters"]) == 2
    for wrong in ([], ["--adapter", "a"], ["--adapter", "=x"], ["--adapter", "a="]):
        with pytest.raises(SystemExit):
            main(["inspect", *wrong])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no LoRA": ({"peft_type": "IA3"}, "peft_type is 'IA3', it must be one of LORA"),
    "DoRA": ({"use_dora": True}, "use_dora is true, it must be false"),
    "rsLoRA": ({"use_rslora": True}, "use_rslora is true, it must be false"),
    "biases": ({"bias": "all"}, "bias is 'all', it must be none"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save is a list, it must be empty"),
    "several ranks": ({"rank_pattern": {"q_proj": 4}}, "rank_pattern is an object, it must be empty"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha is null, it must be a number, by which SGLang scales the adapter"),
    "no rank": ({"r": 0}, "r is 0, it must be a whole number from 1 to 1024"),
    "another rank": ({"r": 4}, "r is 4, but tensor base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight of"),
    "an expression": ({"target_modules": ".*_proj"}, "target_modules is '.*_proj', it must be a list out of q_proj"),
    "the head": ({"target_modules": ["q_proj", "lm_head"]}, "target_modules has 'lm_head', it must be a list out of"),
}


@pytest.mark.parametrize(("more", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_what_sglang_would_ignore_or_refuse_is_named(tmp_path: Path, more: dict[str, Any], sentence: str) -> None:
    found = error(adapter(tmp_path / "a", **more))
    assert found["reason"] == "AdapterMismatch"
    assert found["message"].startswith(f"spec.adapters[support] in {tmp_path}/a: adapter_config.json: ")
    assert sentence in found["message"]


@pytest.mark.parametrize("every", ["all-linear", "all"])
def test_the_word_of_peft_for_all_linear_layers_means_those_with_tensors(tmp_path: Path, every: str) -> None:
    """SGLang 0.5.23 takes both words if it gets the modules as an option, which the operator sets."""
    adapter(tmp_path, target_modules=every)
    report, complete = examine(None, [("a", tmp_path)])
    assert complete
    assert AdapterFacts.from_record(report["adapters"][0]).modules == ATTENTION


def test_a_full_path_of_a_module_is_a_target(tmp_path: Path) -> None:
    adapter(tmp_path, target_modules=["model.layers.0.self_attn.q_proj", "mlp.down_proj"])
    report, _ = examine(None, [("a", tmp_path)])
    assert AdapterFacts.from_record(report["adapters"][0]).modules == (*ATTENTION, "down_proj")


TENSORS = {
    "experts": {"base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight": [8, 64]},
    "a vision tower": {"base_model.model.visual.blocks.0.attn.qkv.lora_A.weight": [8, 64]},
    "no adapter": {"model.layers.0.self_attn.q_proj.weight": [64, 64]},
    "a module elsewhere": {"base_model.model.model.layers.0.mlp.q_proj.lora_A.weight": [8, 64]},
    "nothing": {},
    "two widths": shapes() | {"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": [8, 7]},
    "a layer beyond all": {"base_model.model.model.layers.99999.self_attn.q_proj.lora_A.weight": [8, 64]},
}


@pytest.mark.parametrize("tensors", TENSORS.values(), ids=TENSORS.keys())
def test_tensors_that_no_adapter_of_these_projections_has(tmp_path: Path, tensors: dict[str, list[int]]) -> None:
    adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(weights(tensors))
    found = error(tmp_path)
    assert found["reason"] == "AdapterMismatch"
    assert "adapter_model.safetensors" in found["message"]


def test_files_that_are_missing_or_cut_are_named(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    assert error(tmp_path / "absent")["reason"] == "ModelNotFound"
    content = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(content[:-5])
    assert error(folder)["reason"] == "TruncatedWeights"
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert error(folder)["message"].startswith(
        f"spec.adapters[support]: {folder} has adapter_model.bin and no adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text("[")
    assert error(folder)["reason"] == "InvalidConfig"


@given(st.one_of(st.none(), st.text(), st.lists(st.one_of(st.integers(), st.none(), st.text()), max_size=9)))
def test_a_record_is_read_or_refused(record: object) -> None:
    with suppress(InvalidFactsError):
        assert AdapterFacts.from_record(record).to_record() == record
