"""Facts from a checkpoint's own config.json, believed only where type and range are plausible.

A number that is wrong here becomes a wrong plan and a crash minutes later on a rented GPU: nothing is coerced, and
what the engine would do with a field is what counts, not the model's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from qwen_operator.checkpoints import facts, quantization, shapes
from qwen_operator.checkpoints.facts import Checkpoint, LinearAttention, RopeScaling
from qwen_operator.checkpoints.reading import Fields, InvalidFactsError

_QWEN2 = shapes.Layout(qkv_bias=True)
_QWEN3 = shapes.Layout(qk_norm=True)
_HYBRID = shapes.Layout(qk_norm=True, output_gate=True)
LAYOUTS = {
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen2MoeForCausalLM": _QWEN2,
    "Qwen2VLForConditionalGeneration": _QWEN2,
    "Qwen2_5_VLForConditionalGeneration": _QWEN2,
    "Qwen3ForCausalLM": _QWEN3,
    "Qwen3MoeForCausalLM": _QWEN3,
    "Qwen3VLForConditionalGeneration": _QWEN3,
    "Qwen3VLMoeForConditionalGeneration": _QWEN3,
    "Qwen3NextForCausalLM": _HYBRID,
    "Qwen3_5ForConditionalGeneration": _HYBRID,
    "Qwen3_5MoeForConditionalGeneration": _HYBRID,
}
_LIMIT = 10_000_000
_STATE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def from_config(
    config: Mapping[str, Any], weight_bytes: int | None = None, source: str = facts.HUB, digest: str = ""
) -> Checkpoint:
    """Facts of a checkpoint from its parsed config.json.

    `weight_bytes` are those of its tensors where they are known, else they are computed from the shapes. Numbers of
    the language model are read from `text_config` where there is one. Raises InvalidFactsError with the field, its
    value, and what would be right.
    """
    draft, tensors = _model(config, complete=weight_bytes is None)
    weights = shapes.weigh(tensors, draft.quantization)
    total = weights.bytes if weight_bytes is None else weight_bytes
    if not 1 <= total <= facts.MAX_BYTES:
        raise InvalidFactsError(f"the weights have {total} bytes, it must be a number from 1 to {facts.MAX_BYTES}")
    kv = min(weights.kv_bytes, total)
    return replace(
        draft,
        weight_bytes=total,
        kv_weight_bytes=kv,
        replicated_bytes=min(weights.replicated_bytes, total - kv),
        source=source,
        digest=digest,
    )


def parameters(config: Mapping[str, Any]) -> int:
    """The exact number of parameters that stay in memory; raises InvalidFactsError as `from_config` does."""
    return shapes.weigh(_model(config, complete=True)[1], None).parameters


def _model(config: Mapping[str, Any], complete: bool) -> tuple[Checkpoint, Iterator[shapes.Tensors]]:
    """The facts without bytes, and all tensors; without `complete` an unreadable vision tower is left out."""
    top = Fields(config)
    architecture = _architecture(top)
    text = top.nested("text_config") if top.has("text_config") else top
    draft = _draft(architecture, top, text)
    return draft, chain(shapes.language_model(draft, _layout(architecture, text)), _vision(top, draft, complete))


def _architecture(top: Fields) -> str:
    names = top.values.get("architectures")
    right = "a list whose first entry is one of " + ", ".join(LAYOUTS)
    if not isinstance(names, list) or not names:
        raise top.refuse("architectures", right)
    if not isinstance(names[0], str) or names[0] not in LAYOUTS:
        raise Fields({"architectures[0]": names[0]}).refuse("architectures[0]", "one of " + ", ".join(LAYOUTS))
    return names[0]


def _layout(architecture: str, text: Fields) -> shapes.Layout:
    """The class's layout, as far as config.json may change it; defaults are those of the Hugging Face classes."""
    layout = LAYOUTS[architecture]
    if architecture == "Qwen2MoeForCausalLM":
        return replace(layout, qkv_bias=text.optional_flag("qkv_bias") is not False)
    if layout.qkv_bias:
        return layout
    bias = bool(text.optional_flag("attention_bias"))
    gate = layout.output_gate and text.optional_flag("attn_output_gate") is not False
    return replace(layout, qkv_bias=bias, output_bias=bias, output_gate=gate)


def _draft(architecture: str, top: Fields, text: Fields) -> Checkpoint:
    """Everything but the bytes, which follow from it."""
    layers = text.whole("num_hidden_layers", facts.MAX_LAYERS)
    hidden = text.whole("hidden_size", facts.MAX_HIDDEN)
    heads = text.whole("num_attention_heads", facts.MAX_HEADS)
    experts = _experts(text)
    dense = _dense_layers(text, layers) if experts is not None else layers
    attention_layers = _attention_layers(architecture, text, layers)
    return Checkpoint(
        architecture=architecture,
        dtype=_dtype(top, text),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(text, heads),
        head_dim=_head_dim(text, hidden, heads),
        intermediate=_intermediate(text, dense),
        vocab=text.whole("vocab_size", _LIMIT),
        max_positions=text.whole("max_position_embeddings", facts.MAX_POSITIONS),
        tied=_tied(top, text),
        quantization=quantization.read(top, text),
        experts=experts,
        weight_bytes=0,
        source="",
        digest="",
        attention_layers=attention_layers,
        dense_layers=dense,
        expert_intermediate=text.whole("moe_intermediate_size", facts.MAX_WIDTH) if experts is not None else None,
        shared_intermediate=_shared(text) if experts is not None else None,
        linear=_linear(text, layers - attention_layers),
        rope=_rope(text),
        multimodal=top.has("vision_config"),
        replicated_bytes=0,
        kv_weight_bytes=0,
    )


def _dtype(top: Fields, text: Fields) -> str:
    for fields in (text, top):
        for name in ("dtype", "torch_dtype"):
            if fields.has(name):
                return fields.one_of(name, facts.DTYPES)
    raise text.refuse("torch_dtype", "one of " + ", ".join(facts.DTYPES))


def _kv_heads(text: Fields, heads: int) -> int:
    kv_heads = text.optional("num_key_value_heads", heads) or heads
    if heads % kv_heads:
        raise text.refuse("num_key_value_heads", f"a divisor of num_attention_heads, which is {heads}")
    return kv_heads


def _head_dim(text: Fields, hidden: int, heads: int) -> int:
    if not text.has("head_dim") and hidden % heads:
        raise text.refuse("hidden_size", f"a multiple of num_attention_heads, which is {heads}, as head_dim is not set")
    return text.optional("head_dim", facts.MAX_HEADS) or hidden // heads


def _intermediate(text: Fields, dense_layers: int) -> int:
    """The plain MLP's width; models whose layers all have experts may leave it out, then one expert's."""
    if dense_layers == 0 and not text.has("intermediate_size"):
        return text.whole("moe_intermediate_size", facts.MAX_WIDTH)
    return text.whole("intermediate_size", facts.MAX_WIDTH)


def _experts(text: Fields) -> int | None:
    return text.optional("num_experts", facts.MAX_EXPERTS, low=0) or None


def _shared(text: Fields) -> int | None:
    return text.optional("shared_expert_intermediate_size", facts.MAX_WIDTH, low=0) or None


def _dense_layers(text: Fields, layers: int) -> int:
    """Layers of a model with experts that have a plain MLP instead."""
    step = text.optional("decoder_sparse_step", facts.MAX_LAYERS) or 1
    plain = text.values.get("mlp_only_layers") or []
    if not isinstance(plain, list) or not all(isinstance(index, int) for index in plain):
        raise text.refuse("mlp_only_layers", "a list of layer numbers")
    return sum(index in plain or (index + 1) % step != 0 for index in range(layers))


def _attention_layers(architecture: str, text: Fields, layers: int) -> int:
    """Layers with a KV cache: as `layer_types` lists them, else every `full_attention_interval`th (default 4)."""
    if not LAYOUTS[architecture].output_gate:
        return layers
    if text.has("layer_types"):
        types = text.values["layer_types"]
        known = ("full_attention", "linear_attention")
        if not isinstance(types, list) or len(types) != layers or not all(item in known for item in types):
            raise text.refuse("layer_types", f"a list of {layers} entries out of {' and '.join(known)}")
        count = types.count("full_attention")
    else:
        count = layers // (text.optional("full_attention_interval", layers) or 4)
    if count == 0:
        raise text.refuse("num_hidden_layers", "large enough for one layer with full attention")
    return count


def _linear(text: Fields, layers: int) -> LinearAttention | None:
    if layers == 0:
        return None
    state = text.one_of("mamba_ssm_dtype", tuple(_STATE_BYTES)) if text.has("mamba_ssm_dtype") else "float32"
    return LinearAttention(
        layers=layers,
        value_heads=text.whole("linear_num_value_heads", facts.MAX_HEADS),
        key_heads=text.whole("linear_num_key_heads", facts.MAX_HEADS),
        key_dim=text.whole("linear_key_head_dim", facts.MAX_HEADS),
        value_dim=text.whole("linear_value_head_dim", facts.MAX_HEADS),
        conv_kernel=text.whole("linear_conv_kernel_dim", facts.MAX_HEADS),
        state_value_bytes=_STATE_BYTES[state],
    )


def _rope(text: Fields) -> RopeScaling | None:
    """Scaling that extends the context; None for plain and for multimodal rotary embeddings."""
    name = "rope_scaling" if text.has("rope_scaling") else "rope_parameters"
    if not text.has(name):
        return None
    fields = text.nested(name)
    kind = "rope_type" if fields.has("rope_type") else "type"
    if not fields.has("factor"):
        return None
    return RopeScaling(
        type=fields.name(kind),
        factor=fields.number("factor", facts.MAX_FACTOR),
        original_max_positions=fields.optional("original_max_position_embeddings", facts.MAX_POSITIONS),
    )


def _tied(top: Fields, text: Fields) -> bool:
    """Whether one matrix is embedding and output; false, as in the classes, where neither level says so.

    Where the two levels disagree, engines differ in which they take; two matrices are then the safe assumption.
    """
    flags = [fields.flag("tie_word_embeddings") for fields in (top, text) if fields.has("tie_word_embeddings")]
    return bool(flags) and all(flags)


def _vision(top: Fields, model: Checkpoint, needed: bool) -> Iterator[shapes.Tensors]:
    if not top.has("vision_config"):
        return iter(())
    try:
        return shapes.vision_tower(_tower(model.architecture, top.nested("vision_config"), model.hidden))
    except InvalidFactsError:
        if needed:
            raise
        return iter(())


def _tower(architecture: str, fields: Fields, out: int) -> shapes.Vision:
    """Numbers of a tower under the names that its generation uses; defaults are those of the Hugging Face classes."""
    first = architecture == "Qwen2VLForConditionalGeneration"
    width = fields.whole("embed_dim" if first else "hidden_size", facts.MAX_HIDDEN)
    channels = fields.optional("in_channels", 64) or fields.optional("in_chans", 64) or 3
    edge = fields.whole("patch_size", 1024)
    frames = fields.optional("temporal_patch_size", 64) or 2
    merge = fields.optional("spatial_merge_size", 64) or 2
    modern = architecture not in ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")
    deep = fields.values.get("deepstack_visual_indexes") or []
    if not isinstance(deep, list):
        raise fields.refuse("deepstack_visual_indexes", "a list of layer numbers")
    return shapes.Vision(
        depth=fields.whole("depth", facts.MAX_LAYERS),
        width=width,
        intermediate=(fields.optional("mlp_ratio", 64) or 4) * width
        if first
        else fields.whole("intermediate_size", facts.MAX_WIDTH),
        out=fields.optional("hidden_size" if first else "out_hidden_size", facts.MAX_HIDDEN) or out,
        patch=channels * frames * edge * edge,
        merged=merge * merge,
        gated=architecture == "Qwen2_5_VLForConditionalGeneration",
        positions=fields.whole("num_position_embeddings", facts.MAX_WIDTH) if modern else None,
        deepstack=len(deep),
    )
