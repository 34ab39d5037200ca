"""The one reader of config.json. It accepts a field only if its type and range are plausible.

A wrong number here would become a wrong plan, and a crash on a GPU minutes later. So no value is converted: a boolean
is no number, 24.0 is no whole number, and NaN is in no range. The engine's use of a field counts, not the model's name.

`read` accepts every model class, because an inspection reports any folder and counts the bytes of its files. `measure`
also computes bytes, and accepts only classes and formats with known tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from qwen_runtime.checkpoints import model as limits
from qwen_runtime.checkpoints import quantization, shapes
from qwen_runtime.checkpoints.formats import Stored
from qwen_runtime.checkpoints.model import LinearAttention, ModelConfig, RopeScaling
from qwen_runtime.checkpoints.modules import Held, Modules
from qwen_runtime.checkpoints.reading import Fields, InvalidFactsError, UnknownArchitectureError

CONFIG_FILE = "config.json"
LARGEST_CONFIG = 10_000_000
"""The most bytes of a config.json. Real ones have a few thousand, or 2 MB if a quantization names every expert."""

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
    "Qwen3_5ForCausalLM": _HYBRID,
    "Qwen3_5ForConditionalGeneration": _HYBRID,
    "Qwen3_5MoeForCausalLM": _HYBRID,
    "Qwen3_5MoeForConditionalGeneration": _HYBRID,
    "Qwen2ForRewardModel": replace(_QWEN2, headless=True, score_layers=2),
    "Qwen2ForSequenceClassification": replace(_QWEN2, headless=True, score_layers=1),
    "Qwen3ForRewardModel": replace(_QWEN3, headless=True, score_layers=2),
    "Qwen3ForSequenceClassification": replace(_QWEN3, headless=True, score_layers=1),
    "Qwen3Model": replace(_QWEN3, headless=True),
}
# Where a config.json is silent, the engine takes the default of the Hugging Face class (transformers 5.19,
# models/*/configuration_*.py). By class: KV heads, and the width of a head, or None for hidden size / heads.
_ATTENTION_DEFAULTS: dict[str, tuple[int, int | None]] = {
    "Qwen2": (32, None), "Qwen2Moe": (16, None), "Qwen2VL": (8, None), "Qwen2_5_VL": (8, None),
    "Qwen3": (32, 128), "Qwen3Moe": (4, None), "Qwen3VL": (32, 128), "Qwen3VLMoe": (16, None),
    "Qwen3Next": (2, 256), "Qwen3_5": (4, 256), "Qwen3_5Moe": (2, 256),
}  # fmt: skip
_CLASS_END = re.compile(r"(For[A-Z].*|Model)$")
POSITION_KEYS = ("max_sequence_length", "seq_length", "max_seq_len", "model_max_length", "max_position_embeddings")
"""The fields from which SGLang takes the longest context. The first one that is set wins."""
# More experts than any model has are taken to be named as the first ones are.
_NAMED_EXPERTS = 1024
# Names that torch has for the same types. It has none with its own name in front, such as torch.float16.
_OTHER_DTYPES = {"half": "float16", "float": "float32"}
_STATE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class TensorHints:
    """Facts from the tensors, used if config.json lacks them: the dtype of most bytes, and whether `lm_head` exists."""

    dtype: str | None
    has_lm_head: bool


NO_TENSORS = TensorHints(None, has_lm_head=True)
"""For a config.json without its weights. If it lacks a field, the default of the model class counts."""


def read(config: Mapping[str, Any], hints: TensorHints = NO_TENSORS, held: Held | None = None) -> ModelConfig:
    """The model that a parsed config.json describes, of any class.

    The language model's numbers come from `text_config` where there is one, as SGLang takes them. `held` is what the
    files hold, if they are at hand. Raises InvalidFactsError with the field, its value, and what would be right.
    """
    return _read(config, hints, held)[0]


def measure(config: Mapping[str, Any], *, towers: bool = True) -> tuple[ModelConfig, shapes.Weights]:
    """The model and its weights, computed from the shapes.

    Without `towers`, an unreadable vision tower is left out. Raises InvalidFactsError as `read` does, and for a model
    class or a quantization of unknown size.
    """
    top = Fields(config)
    text = _text(top)
    _check_known(top)
    quantization.check_known(top, text)
    model, stored = _read(config, NO_TENSORS, None)
    if model.experts is not None and model.expert_intermediate is None:
        raise text.refuse("moe_intermediate_size", f"a whole number from 1 to {limits.MAX_WIDTH}")
    vision = _vision(top, model.architecture, model.hidden, towers)
    tower = shapes.vision_tower(vision) if vision else ()
    return model, shapes.weigh(chain(shapes.language_model(model, _layout(model.architecture, text)), tower), stored)


def _read(config: Mapping[str, Any], hints: TensorHints, held: Held | None) -> tuple[ModelConfig, Stored | None]:
    top = Fields(config)
    text = _text(top)
    architecture = _architecture(top)
    layers = text.whole("num_hidden_layers", limits.MAX_LAYERS)
    hidden = text.whole("hidden_size", limits.MAX_HIDDEN)
    heads = text.whole("num_attention_heads", limits.MAX_HEADS)
    defaults = _ATTENTION_DEFAULTS.get(_CLASS_END.sub("", architecture), (heads, None))
    # transformers 5 writes the second name, for classes with experts. Classes without any ignore it.
    renamed = "num_experts" not in text.values and "moe_intermediate_size" in text.values
    experts = text.optional("num_local_experts" if renamed else "num_experts", limits.MAX_EXPERTS, low=0) or None
    modules = _modules(top, architecture, layers, experts)
    vision = _vision(top, architecture, hidden, needed=False)
    decided = quantization.decide(top, text, modules, held)
    model = ModelConfig(
        architecture=architecture,
        model_type=top.name("model_type"),
        dtype=_dtype(top, text, hints),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(text, heads, defaults[0]),
        head_dim=_head_dim(text, hidden, heads, defaults[1]),
        intermediate=_intermediate(text, len(modules.dense)),
        vocab=(text if text.has("vocab_size") else top).whole("vocab_size", limits.MAX_VOCAB),
        max_positions=_positions(text),
        tied=_tied(top, text, hints) or headless(architecture),
        quantization=decided.quantization,
        experts=experts,
        attention_layers=len(modules.attention),
        dense_layers=len(modules.dense),
        expert_intermediate=_expert_width(text, "moe_intermediate_size") if experts else None,
        shared_intermediate=_shared_width(text, experts),
        linear=_linear(text, layers - len(modules.attention)),
        rope=_rope(text),
        multimodal=_multimodal(top, architecture),
        tower=vision.split if vision else None,
    )
    return model, decided.stored


def _modules(top: Fields, architecture: str, layers: int, experts: int | None) -> Modules:
    text = _text(top)
    return Modules(
        layers=layers,
        dense=frozenset(range(layers)) if experts is None else _dense_layers(text, layers),
        attention=_attention_layers(architecture, text, layers),
        experts=min(experts or 0, _NAMED_EXPERTS),
        shared=_shared_width(text, experts) is not None,
        split_input=architecture.startswith("Qwen3_5"),
        nested=top.has("text_config") or top.has("vision_config"),
    )


def headless(architecture: str) -> bool:
    """Whether the class has no output matrix over the vocabulary, so that an engine does not load one."""
    layout = LAYOUTS.get(architecture)
    return layout is not None and layout.headless


def _positions(text: Fields) -> int:
    """The longest context as SGLang derives it, without the factor of a scaling."""
    name = next((name for name in POSITION_KEYS if text.has(name)), POSITION_KEYS[-1])
    return text.whole(name, limits.MAX_POSITIONS)


def _text(top: Fields) -> Fields:
    return top.nested("text_config") if top.has("text_config") else top


def _architecture(top: Fields) -> str:
    names = top.values.get("architectures")
    if not isinstance(names, list) or not names:
        raise top.refuse("architectures", "a list with the name of the model class, for example Qwen2ForCausalLM")
    return Fields({"architectures[0]": names[0]}).name("architectures[0]")


def _check_known(top: Fields) -> None:
    names = top.values.get("architectures")
    right = "one of " + ", ".join(LAYOUTS)
    if not isinstance(names, list) or not names:
        raise top.refuse("architectures", f"a list whose first entry is {right}")
    if not isinstance(names[0], str) or names[0] not in LAYOUTS:
        refused = Fields({"architectures[0]": names[0]}).refuse("architectures[0]", right)
        raise UnknownArchitectureError(str(refused), refused.public)


def _layout(architecture: str, text: Fields) -> shapes.Layout:
    """The layout of the model class with the changes in config.json. Defaults are those of the Hugging Face classes."""
    layout = LAYOUTS[architecture]
    if architecture == "Qwen2MoeForCausalLM":
        return replace(layout, qkv_bias=text.optional_flag("qkv_bias") is not False)
    if layout.qkv_bias:
        return layout
    bias = bool(text.optional_flag("attention_bias"))
    gate = layout.output_gate and text.optional_flag("attn_output_gate") is not False
    return replace(layout, qkv_bias=bias, output_bias=bias, output_gate=gate)


def _dtype(top: Fields, text: Fields, hints: TensorHints) -> str:
    """SGLang reads `dtype` of the text part first. Older files call it `torch_dtype`.

    Without a dtype, SGLang loads a file as if it said float32: at 16 bits.
    """
    for fields in (text, top):
        for name in ("dtype", "torch_dtype"):
            if fields.has(name):
                value = fields.values[name]
                plain = _OTHER_DTYPES.get(value, value) if isinstance(value, str) else ""
                if plain not in limits.DTYPES:
                    raise fields.refuse(name, "one of " + ", ".join(limits.DTYPES))
                return plain
    return hints.dtype or "float32"


def _kv_heads(text: Fields, heads: int, default: int) -> int:
    """`default` counts if the field is absent. If it is null, the class takes the number of heads."""
    name = "num_key_value_heads"
    kv_heads = text.optional(name, heads) or heads if name in text.values else default
    if heads % kv_heads:
        raise text.refuse(name, f"a divisor of num_attention_heads, which is {heads}")
    return kv_heads


def _head_dim(text: Fields, hidden: int, heads: int, default: int | None) -> int:
    """`default` counts if the field is absent. Null stands for hidden size / heads."""
    head_dim = text.optional("head_dim", limits.MAX_HEADS) if "head_dim" in text.values else default
    if head_dim is None and hidden % heads:
        raise text.refuse("hidden_size", f"a multiple of num_attention_heads, which is {heads}, as head_dim is not set")
    return head_dim or hidden // heads


def _intermediate(text: Fields, dense_layers: int) -> int:
    """The width of the plain MLP. If all layers have experts, config.json may lack it; it is then one expert's."""
    if dense_layers == 0 and not text.has("intermediate_size"):
        return text.whole("moe_intermediate_size", limits.MAX_WIDTH)
    return text.whole("intermediate_size", limits.MAX_WIDTH)


def _expert_width(text: Fields, name: str) -> int | None:
    """None if the field is absent or 0. Models without a shared expert have 0."""
    return text.optional(name, limits.MAX_WIDTH, low=0) or None


def _shared_width(text: Fields, experts: int | None) -> int | None:
    return _expert_width(text, "shared_expert_intermediate_size") if experts else None


def _dense_layers(text: Fields, layers: int) -> frozenset[int]:
    """Numbers of the layers of a model with experts that have a plain MLP instead."""
    step = text.optional("decoder_sparse_step", limits.MAX_LAYERS) or 1
    plain = text.values.get("mlp_only_layers") or []
    if not isinstance(plain, list) or not all(isinstance(index, int) for index in plain):
        raise text.refuse("mlp_only_layers", "a list of layer numbers")
    return frozenset(plain).intersection(range(layers)) | {index for index in range(layers) if (index + 1) % step}


def _attention_layers(architecture: str, text: Fields, layers: int) -> frozenset[int]:
    """Numbers of the layers with a KV cache: as in `layer_types`, else every `full_attention_interval`th (default 4).

    The model class decides whether a model is a hybrid. An unknown class is a hybrid if it has linear attention.
    """
    layout = LAYOUTS.get(architecture)
    if not (layout.output_gate if layout else text.has("linear_num_value_heads")):
        return frozenset(range(layers))
    if text.has("layer_types"):
        types = text.values["layer_types"]
        known = ("full_attention", "linear_attention")
        if not isinstance(types, list) or len(types) != layers or not all(item in known for item in types):
            raise text.refuse("layer_types", f"a list of {layers} entries out of {' and '.join(known)}")
        cached = frozenset(index for index, kind in enumerate(types) if kind == "full_attention")
    else:
        interval = text.optional("full_attention_interval", layers) or 4
        cached = frozenset(range(interval - 1, layers, interval))
    if not cached:
        raise text.refuse("num_hidden_layers", "large enough for one layer with full attention")
    return cached


def _linear(text: Fields, layers: int) -> LinearAttention | None:
    if layers == 0:
        return None
    state = text.one_of("mamba_ssm_dtype", tuple(_STATE_BYTES)) if text.has("mamba_ssm_dtype") else "float32"
    return LinearAttention(
        layers=layers,
        value_heads=text.whole("linear_num_value_heads", limits.MAX_HEADS),
        key_heads=text.whole("linear_num_key_heads", limits.MAX_HEADS),
        key_dim=text.whole("linear_key_head_dim", limits.MAX_HEADS),
        value_dim=text.whole("linear_value_head_dim", limits.MAX_HEADS),
        conv_kernel=text.whole("linear_conv_kernel_dim", limits.MAX_HEADS),
        state_value_bytes=_STATE_BYTES[state],
    )


def _rope(text: Fields) -> RopeScaling | None:
    """Scaling that extends the context. None for plain and for multimodal rotary embeddings, which have no factor."""
    name = "rope_scaling" if text.has("rope_scaling") else "rope_parameters"
    if not text.has(name):
        return None
    fields = text.nested(name)
    if not fields.has("factor"):
        return None
    factor = fields.number("factor", limits.MAX_FACTOR)
    kind = next((kind for kind in ("rope_type", "type") if fields.has(kind)), "")
    if not kind:
        # Without a type, transformers takes the plain rotary embeddings.
        return None
    return RopeScaling(
        type=fields.name(kind),
        factor=factor,
        original_max_positions=fields.optional("original_max_position_embeddings", limits.MAX_POSITIONS),
    )


def _tied(top: Fields, text: Fields, hints: TensorHints) -> bool:
    """Whether one matrix is both embedding and output. Without the flag, a model without `lm_head` counts as tied.

    If the two levels disagree, engines differ in which one they use. Then two matrices are the safe assumption.
    """
    flags = [fields.flag("tie_word_embeddings") for fields in (top, text) if fields.has("tie_word_embeddings")]
    return all(flags) if flags else not hints.has_lm_head


def _multimodal(top: Fields, architecture: str) -> bool:
    """Whether the engine makes a vision tower. The class decides, also where an export left `vision_config` out."""
    return top.has("vision_config") or (architecture in LAYOUTS and architecture.endswith("ForConditionalGeneration"))


def _vision(top: Fields, architecture: str, out: int, needed: bool) -> shapes.Vision | None:
    """The numbers of the vision tower; None without one, and unless it is `needed`, for one that cannot be read."""
    if not _multimodal(top, architecture):
        return None
    try:
        return _tower(architecture, top.nested("vision_config") if top.has("vision_config") else Fields({}), out)
    except InvalidFactsError:
        if needed:
            raise
        return None


@dataclass(frozen=True, slots=True)
class _TowerDefaults:
    """What the Hugging Face class of a tower has where a vision_config is silent."""

    depth: int
    width: int
    patch: int
    intermediate: int | None = None
    positions: int | None = None
    deepstack: int = 0


# From transformers 5.24, models/*/configuration_*.py. A published vision_config names only what differs.
_QWEN2_TOWER = _TowerDefaults(depth=32, width=1280, patch=14)
_QWEN2_5_TOWER = _TowerDefaults(depth=32, width=3584, patch=14, intermediate=3420)
_QWEN3_TOWER = _TowerDefaults(depth=27, width=1152, patch=16, intermediate=4304, positions=2304)
_QWEN3_VL_TOWER = replace(_QWEN3_TOWER, deepstack=3)


def _tower_defaults(architecture: str) -> _TowerDefaults:
    if architecture == "Qwen2VLForConditionalGeneration":
        return _QWEN2_TOWER
    if architecture == "Qwen2_5_VLForConditionalGeneration":
        return _QWEN2_5_TOWER
    return _QWEN3_VL_TOWER if architecture.startswith("Qwen3VL") else _QWEN3_TOWER


def _tower(architecture: str, fields: Fields, out: int) -> shapes.Vision:
    """Numbers of a tower under the names that its generation uses."""
    first = architecture == "Qwen2VLForConditionalGeneration"
    default = _tower_defaults(architecture)
    width = fields.optional("embed_dim" if first else "hidden_size", limits.MAX_HIDDEN) or default.width
    channels = fields.optional("in_channels", 64) or fields.optional("in_chans", 64) or 3
    edge = fields.optional("patch_size", 1024) or default.patch
    frames = fields.optional("temporal_patch_size", 64) or 2
    merge = fields.optional("spatial_merge_size", 64) or 2
    deep = fields.values.get("deepstack_visual_indexes")
    if deep is not None and not isinstance(deep, list):
        raise fields.refuse("deepstack_visual_indexes", "a list of layer numbers")
    intermediate = None if first else fields.optional("intermediate_size", limits.MAX_WIDTH) or default.intermediate
    positions = default.positions and (
        fields.optional("num_position_embeddings", limits.MAX_WIDTH) or default.positions
    )
    return shapes.Vision(
        depth=fields.optional("depth", limits.MAX_LAYERS) or default.depth,
        width=width,
        intermediate=intermediate or (fields.optional("mlp_ratio", 64) or 4) * width,
        out=fields.optional("hidden_size" if first else "out_hidden_size", limits.MAX_HIDDEN) or out,
        patch=channels * frames * edge * edge,
        merged=merge * merge,
        gated=architecture == "Qwen2_5_VLForConditionalGeneration",
        positions=positions,
        deepstack=default.deepstack if deep is None else len(deep),
        heads=fields.optional("num_heads", limits.MAX_HEADS) or 16,
    )
