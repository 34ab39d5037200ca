"""What the header of a GGUF file says of the model, and what SGLang 0.5.23 makes of it.

SGLang takes the numbers of the model from a config.json beside the file, else from the header
(srt/utils/hf_transformers/config.py:344), and the tokenizer likewise by tokenizer_config.json. It opens one file
(srt/model_loader/weight_utils.py:1474): the parts of a split one must be joined first (`gguf_parts`). A tensor of the
file that the model class lacks is passed over, and one that the file lacks stays as it was allocated. So the names are
checked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from qwen_runtime.checkpoints import model as limits
from qwen_runtime.checkpoints.config import TensorHints, read
from qwen_runtime.checkpoints.gguf import Header, Tensor
from qwen_runtime.checkpoints.model import ModelConfig, Quantization
from qwen_runtime.checkpoints.reading import Fields, InvalidFactsError, UnknownArchitectureError, kind, shown

TEMPLATE_KEY = "tokenizer.chat_template"
_CLASSES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# transformers 5.19.0 does not read the head width of a Qwen3 from a GGUF file (integrations/ggml.py:113), so it is the
# default of Qwen3Config. A Qwen2 has none of its own.
_QWEN3_HEAD = 128
_BIASED = ("attn_q", "attn_k", "attn_v")
# SGLang merges these into one matrix each, whose rows are as long as the longest (layers/quantization/gguf.py:450).
_MERGED = (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up"))
# The types that SGLang has kernels for (layers/quantization/gguf.py:153-176).
_KERNELS = frozenset(
    {
        *("F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
        *("IQ1_M", "IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "IQ4_NL"),
    }
)
_BLOCK = re.compile(r"blk\.(\d{1,4})\.(.+)")


def report(header: Header, file: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The members of an inspection report about the model in a file. `config` is the config.json beside it, or None.

    Raises InvalidFactsError, which names the file and the field.
    """
    fields = Fields(header.values, f"{file}: ")
    architecture = _architecture(fields, file)
    model = _model(header, fields, architecture, config, file)
    _check_tensors(header, model, architecture, file)
    padding = _padding(header)
    return {
        "version": 2,
        **replace(model, quantization=_quantization(header)).to_report(),
        **_parts(header, model.layers),
        "weightBytes": sum(tensor.size for tensor in header.tensors.values()) + padding,
        "tensors": len(header.tensors),
        "configSha256": header.digest,
    }


def has_tokenizer(header: Header) -> bool:
    """Whether the file holds a tokenizer that SGLang can make from it."""
    return "tokenizer.ggml.model" in header.values and header.lengths.get("tokenizer.ggml.tokens", 0) > 0


def template(header: Header) -> str | None:
    """The chat template in the file."""
    text = header.values.get(TEMPLATE_KEY)
    return text if isinstance(text, str) else None


def _architecture(fields: Fields, file: str) -> str:
    name = fields.values.get("general.architecture")
    if isinstance(name, str) and name in _CLASSES:
        return name
    right = f"of GGUF files, the operator serves {' and '.join(_CLASSES)}; use a checkpoint of *.safetensors files"
    raise UnknownArchitectureError(
        f"{file} has the architecture {shown(name)}: {right}", f"{file} has the architecture {kind(name)}: {right}"
    )


def _model(
    header: Header, fields: Fields, architecture: str, config: Mapping[str, Any] | None, file: str
) -> ModelConfig:
    own = _own_config(header, fields, architecture)
    hints = TensorHints("float16", has_lm_head="output.weight" in header.tensors)
    if config is None:
        _check_head(own, fields, architecture, file)
        return _read(own, hints, file)
    if config.get("quantization_config") is not None:
        raise InvalidFactsError(
            f"config.json beside {file} has quantization_config, but a GGUF file says itself how it is quantized: keep "
            "the GGUF file in a folder of its own"
        )
    model = _read(config, hints, f"config.json beside {file}")
    beside = {
        "architectures": model.architecture,
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "intermediate_size": model.intermediate,
    }
    for name, value in beside.items():
        right = own[name][0] if name == "architectures" else own[name]
        if value != right:
            raise InvalidFactsError(f"{name} in config.json beside {file} is {value}, but the file has {right}")
    return model


def _read(config: Mapping[str, Any], hints: TensorHints, where: str) -> ModelConfig:
    """The model of these numbers. Raises InvalidFactsError, which says where they are from."""
    try:
        return read(config, hints)
    except InvalidFactsError as error:
        raise InvalidFactsError(f"{where}: {error}", f"{where}: {error.public}") from None


def _own_config(header: Header, fields: Fields, architecture: str) -> dict[str, Any]:
    """The numbers in the header by their names in config.json."""
    prefix = f"{architecture}."
    heads = fields.whole(f"{prefix}attention.head_count", limits.MAX_HEADS)
    vocabulary = fields.optional(f"{prefix}vocab_size", limits.MAX_VOCAB)
    config = {
        "architectures": [_CLASSES[architecture]],
        "model_type": architecture,
        "torch_dtype": "float16",
        "num_hidden_layers": fields.whole(f"{prefix}block_count", limits.MAX_LAYERS),
        "hidden_size": fields.whole(f"{prefix}embedding_length", limits.MAX_HIDDEN),
        "intermediate_size": fields.whole(f"{prefix}feed_forward_length", limits.MAX_WIDTH),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.optional(f"{prefix}attention.head_count_kv", limits.MAX_HEADS) or heads,
        "max_position_embeddings": _positions(fields, prefix),
        "vocab_size": vocabulary or header.lengths.get("tokenizer.ggml.tokens"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    return config | ({"head_dim": _QWEN3_HEAD} if architecture == "qwen3" else {})


def _positions(fields: Fields, prefix: str) -> int:
    """The longest context. SGLang does not read the scaling of a GGUF file, so the model's own positions count."""
    whole = fields.whole(f"{prefix}context_length", limits.MAX_POSITIONS)
    own = fields.optional(f"{prefix}rope.scaling.original_context_length", limits.MAX_POSITIONS)
    return min(whole, own) if own else whole


def _check_head(own: Mapping[str, Any], fields: Fields, architecture: str, file: str) -> None:
    taken = own.get("head_dim") or own["hidden_size"] // own["num_attention_heads"]
    width = fields.optional(f"{architecture}.attention.key_length", limits.MAX_HEADS)
    if width is not None and width != taken:
        raise InvalidFactsError(
            f"{file}: {architecture}.attention.key_length is {width}, but SGLang takes {taken} for a GGUF file: put "
            "the model's config.json beside it"
        )


def _check_tensors(header: Header, model: ModelConfig, architecture: str, file: str) -> None:
    """Raise InvalidFactsError if a tensor that the model class needs is missing, or has another shape."""
    for name, shape in _wanted(model, architecture):
        tensor = header.tensors.get(name)
        if tensor is None:
            raise InvalidFactsError(f"{file} has no tensor {name}: convert the model again")
        if tensor.shape != shape:
            found, right = (" x ".join(map(str, one)) for one in (tensor.shape, shape))
            raise InvalidFactsError(f"{file}: the tensor {name} is {found}, it must be {right}")


def _wanted(model: ModelConfig, architecture: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, query, kv = model.hidden, model.heads * model.head_dim, model.kv_heads * model.head_dim
    yield "token_embd.weight", (hidden, model.vocab)
    yield "output_norm.weight", (hidden,)
    if not model.tied:
        yield "output.weight", (hidden, model.vocab)
    matrices = {
        "attn_q": (hidden, query),
        "attn_k": (hidden, kv),
        "attn_v": (hidden, kv),
        "attn_output": (query, hidden),
        "ffn_gate": (hidden, model.intermediate),
        "ffn_up": (hidden, model.intermediate),
        "ffn_down": (model.intermediate, hidden),
    }
    for layer in range(model.layers):
        for name, shape in matrices.items():
            yield f"blk.{layer}.{name}.weight", shape
            if architecture == "qwen2" and name in _BIASED:
                yield f"blk.{layer}.{name}.bias", shape[1:]
        for norm in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{norm}.weight", (hidden,)
        if architecture == "qwen3":
            for norm in ("attn_q_norm", "attn_k_norm"):
                yield f"blk.{layer}.{norm}.weight", (model.head_dim,)


def _quantization(header: Header) -> Quantization:
    """The type that holds most bytes of the matrices, and all types with their bytes."""
    sizes: dict[str, int] = {}
    bits: dict[str, int] = {}
    for tensor in header.tensors.values():
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.size
        bits[tensor.type.name] = tensor.type.bits
    most = max(sizes, key=lambda name: sizes[name])
    types = tuple(sorted(sizes.items(), key=lambda one: (-one[1], one[0])))
    return Quantization("gguf", min(bits[most], limits.MAX_BITS), None, refused=_unloadable(header), types=types)


def _unloadable(header: Header) -> str:
    """Why SGLang cannot load the tensors, in a clause; "" if it can."""
    for name, tensor in header.tensors.items():
        if len(tensor.shape) > 1 and tensor.type.name not in _KERNELS:
            right = "F16 or a type such as Q8_0, Q6_K or Q4_K"
            return f"its tensor {name} has the type {tensor.type.name}, it must have {right}"
        if len(tensor.shape) == 1 and tensor.type.name != "F32":
            return f"its tensor {name} has the type {tensor.type.name}, it must have F32"
    for names in _merged(header):
        kinds = {header.tensors[name].type.name == "F16" for name in names}
        if len(kinds) > 1:
            return f"only some of {', '.join(names)} have the type F16, and SGLang makes one matrix of them"
    return ""


def _merged(header: Header) -> Iterator[tuple[str, ...]]:
    """The names of the matrices that SGLang loads as one."""
    blocks = sorted({int(match[1]) for name in header.tensors if (match := _BLOCK.fullmatch(name))})
    for block in blocks:
        for names in _MERGED:
            present = tuple(name for part in names if (name := f"blk.{block}.{part}.weight") in header.tensors)
            if present:
                yield present


def _padding(header: Header) -> int:
    """Bytes that SGLang adds where matrices of several types become one: every row gets the longest row's length."""
    total = 0
    for names in _merged(header):
        tensors = [header.tensors[name] for name in names]
        longest = max(_row(tensor) for tensor in tensors)
        total += sum((longest - _row(tensor)) * tensor.shape[-1] for tensor in tensors)
    return total


def _row(tensor: Tensor) -> int:
    return tensor.type.size(tensor.shape[0])


def _parts(header: Header, layers: int) -> dict[str, int]:
    """Bytes that are not kept, of K and V, and of what every GPU would hold. SGLang keeps 16 of each 32 bits."""
    size = {"idleBytes": 0, "kvWeightBytes": 0, "replicatedBytes": 0}
    for name, tensor in header.tensors.items():
        match = _BLOCK.fullmatch(name)
        if name.startswith("rope_freqs.") or (match and int(match[1]) >= layers):
            size["idleBytes"] += tensor.size
            continue
        half = tensor.size // 2 if tensor.type.name == "F32" else 0
        size["idleBytes"] += half
        if name.endswith("norm.weight"):
            size["replicatedBytes"] += tensor.size - half
        elif match and match[2].startswith(("attn_k.", "attn_v.")):
            size["kvWeightBytes"] += tensor.size - half
    return size
