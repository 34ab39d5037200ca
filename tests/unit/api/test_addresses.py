"""Addresses that people paste from a hub's pages, and the value of the field that they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_operator.api.spec import InvalidSpec, parse
from qwen_operator.api.uris import FORMS, cure, hub_address

HF = {
    "https://huggingface.co/Qwen/Qwen3-8B": "",
    "http://www.huggingface.co/Qwen/Qwen3-8B/": "",
    "https://hf.co/Qwen/Qwen3-8B": "",
    "HTTPS://HuggingFace.co/Qwen/Qwen3-8B": "",
    "hf.co/Qwen/Qwen3-8B/tree/main": "",
    "huggingface.co/Qwen/Qwen3-8B": "",
    "https://huggingface.co/Qwen/Qwen3-8B/tree/main": "",
    "https://huggingface.co/Qwen/Qwen3-8B/tree/main/": "",
    "https://huggingface.co/Qwen/Qwen3-8B?library=transformers": "",
    "https://huggingface.co/Qwen/Qwen3-8B#usage": "",
    "https://huggingface.co/Qwen/Qwen3-8B.git": "",
    "https://huggingface.co/Qwen/Qwen3-8B/blob/v1.0/config.json": "v1.0",
    "https://huggingface.co/Qwen/Qwen3-8B/resolve/v1.0/config.json?download=true": "v1.0",
    "https://huggingface.co/Qwen/Qwen3-8B/commit/v1.0": "v1.0",
    "https://huggingface.co/Qwen/Qwen3-8B/discussions/7": "",
    "hf://Qwen/Qwen3-8B/": "",
    "hf://huggingface.co/Qwen/Qwen3-8B": "",
    "hf:Qwen/Qwen3-8B": "",
}
MODELSCOPE = {
    "https://www.modelscope.cn/models/Qwen/Qwen3-8B": "",
    "https://modelscope.cn/models/Qwen/Qwen3-8B/summary": "",
    "https://www.modelscope.cn/models/Qwen/Qwen3-8B/files?version=master": "",
    "https://modelscope.cn/models/Qwen/Qwen3-8B/file/view/v1.0/config.json": "v1.0",
    "modelscope://models/Qwen/Qwen3-8B": "",
}


@pytest.mark.parametrize(("scheme", "text"), [*(("hf", text) for text in HF), *(("modelscope", t) for t in MODELSCOPE)])
def test_a_pasted_address_is_understood(scheme: str, text: str) -> None:
    address = hub_address(text)
    assert address is not None
    assert (address.uri, address.revision) == (f"{scheme}://Qwen/Qwen3-8B", (HF | MODELSCOPE)[text])
    form = FORMS[scheme]
    assert form.rule().holds(address.uri)


@pytest.mark.parametrize(
    "text",
    ["Qwen/Qwen3-8B", "pvc://models/a", "https://example.com/a/b", "https://huggingface.co/Qwen", "models/Qwen3", "",
     "https://huggingface.co/datasets/a/b", "https://huggingface.co/spaces/a/b", "https://huggingface.co/../b", "a b",
     "https://huggingface.co", "qwen:latest"],
)  # fmt: skip
def test_other_texts_are_left_alone(text: str) -> None:
    assert cure(text) == ""


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    cure(text)
    cure(f"https://huggingface.co/{text}")


def problems(**spec: object) -> str:
    with pytest.raises(InvalidSpec) as refused:
        parse({"metadata": {"name": "a"}, "spec": {"model": "m", **spec}})
    return str(refused.value)


def test_the_answer_is_the_value_of_the_field() -> None:
    page = "https://huggingface.co/Qwen/Qwen3-8B/tree/v1.0"
    assert problems(source={"uri": page}).endswith(
        "Set spec.source.uri to hf://Qwen/Qwen3-8B and spec.source.revision to v1.0"
    )
    assert "Set spec.source.uri to modelscope://a/b" in problems(source={"uri": "https://modelscope.cn/models/a/b"})
    plain = "https://huggingface.co/Qwen/Qwen3-8B"
    assert problems(model=plain).endswith("Set spec.model to Qwen/Qwen3-8B, or spec.source.uri to hf://Qwen/Qwen3-8B")
    assert "Set spec.model to Qwen/Qwen3-8B" in problems(source={"uri": "hf://Qwen/Qwen3-8B/tree/main"})
