"""Small GGUF files, written with the standard library."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_runtime.checkpoints.gguf import TYPES

NUMBERS = {one.name: number for number, one in TYPES.items()}
U32 = 4
HIDDEN, QUERY, KV, WIDTH, VOCAB = 256, 256, 128, 512, 320
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(one: Any) -> bytes:
    """A metadata value with its type in front."""
    if isinstance(one, bool):
        return struct.pack("<I?", 7, one)
    if isinstance(one, int):
        return struct.pack("<II", U32, one)
    if isinstance(one, float):
        return struct.pack("<If", 6, one)
    if isinstance(one, str):
        return struct.pack("<I", 8) + text(one)
    items = b"".join(text(item) if isinstance(item, str) else struct.pack("<I", item) for item in one)
    return struct.pack("<IIQ", 9, 8 if isinstance(one[0], str) else U32, len(one)) + items


@dataclass
class File:
    """A GGUF file of one layer. `tensors`: name -> (type, shape)."""

    values: dict[str, Any]
    tensors: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    version: int = 3

    def header(self) -> bytes:
        """Everything before the data, with its padding."""
        table, offset = b"", 0
        for name, (kind, shape) in self.tensors.items():
            table += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            table += struct.pack("<IQ", NUMBERS[kind], offset)
            offset += -(-self.size(name) // 32) * 32
        entries = b"".join(text(key) + value(one) for key, one in self.values.items())
        start = b"GGUF" + struct.pack("<IQQ", self.version, len(self.tensors), len(self.values))
        raw = start + entries + table
        return raw + bytes(-len(raw) % 32)

    def size(self, name: str) -> int:
        """The bytes of a tensor."""
        kind, shape = self.tensors[name]
        count = 1
        for length in shape:
            count *= length
        return TYPES[NUMBERS[kind]].size(count)

    def data(self, name: str) -> bytes:
        """The data of a tensor with its padding."""
        size, mark = self.size(name), hashlib.sha256(name.encode()).digest()
        return (mark * (size // len(mark) + 1))[:size] + bytes(-size % 32)

    def split(self, *first: int, name: str = "model") -> dict[str, bytes]:
        """The file in parts, as llama-gguf-split makes them. `first`: with which tensor each later part begins."""
        names, bounds = list(self.tensors), (0, *first, len(self.tensors))
        count = len(bounds) - 1
        parts = {}
        for number in range(count):
            values = dict(self.values) if number == 0 else {}
            values |= {"split.no": number, "split.count": count, "split.tensors.count": len(names)}
            own = {one: self.tensors[one] for one in names[bounds[number] : bounds[number + 1]]}
            parts[f"{name}-{number + 1:05}-of-{count:05}.gguf"] = File(values, own).bytes()
        return parts

    def bytes(self) -> bytes:
        """The whole file. Every tensor has other data."""
        return self.header() + b"".join(map(self.data, self.tensors))

    def write(self, path: Path) -> Path:
        path.write_bytes(self.bytes())
        return path


def qwen2(kind: str = "Q4_K", **types: str) -> File:
    """A Qwen2 of one layer. `kind` is the type of its matrices, `types` those of single ones, as attn_v="Q6_K"."""
    matrices = {
        "attn_q": (HIDDEN, QUERY),
        "attn_k": (HIDDEN, KV),
        "attn_v": (HIDDEN, KV),
        "attn_output": (QUERY, HIDDEN),
        "ffn_gate": (HIDDEN, WIDTH),
        "ffn_up": (HIDDEN, WIDTH),
        "ffn_down": (WIDTH, HIDDEN),
    }
    tensors = {
        "token_embd.weight": (types.get("token_embd", kind), (HIDDEN, VOCAB)),
        "output.weight": (types.get("output", kind), (HIDDEN, VOCAB)),
        "output_norm.weight": ("F32", (HIDDEN,)),
        "blk.0.attn_norm.weight": ("F32", (HIDDEN,)),
        "blk.0.ffn_norm.weight": ("F32", (HIDDEN,)),
        "blk.0.attn_q.bias": ("F32", (QUERY,)),
        "blk.0.attn_k.bias": ("F32", (KV,)),
        "blk.0.attn_v.bias": ("F32", (KV,)),
        **{f"blk.0.{name}.weight": (types.get(name, kind), shape) for name, shape in matrices.items()},
    }
    values = {
        "general.architecture": "qwen2",
        "qwen2.block_count": 1,
        "qwen2.context_length": 32768,
        "qwen2.embedding_length": HIDDEN,
        "qwen2.feed_forward_length": WIDTH,
        "qwen2.attention.head_count": 4,
        "qwen2.attention.head_count_kv": 2,
        "qwen2.rope.freq_base": 1000000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [f"t{number}" for number in range(VOCAB)],
        "tokenizer.ggml.token_type": [1] * VOCAB,
        "tokenizer.chat_template": TEMPLATE,
    }
    return File(values, tensors)


def qwen3() -> File:
    """A Qwen3 of one layer, whose embedding is also its output."""
    file = qwen2("Q8_0")
    values = {key.replace("qwen2.", "qwen3."): one for key, one in file.values.items()}
    values |= {"general.architecture": "qwen3", "qwen3.attention.key_length": 128}
    tensors = {name: one for name, one in file.tensors.items() if not name.endswith("bias") and name != "output.weight"}
    for name, outputs in (("attn_q", 512), ("attn_k", 256), ("attn_v", 256)):
        tensors[f"blk.0.{name}.weight"] = ("Q8_0", (HIDDEN, outputs))
    tensors["blk.0.attn_output.weight"] = ("Q8_0", (512, HIDDEN))
    tensors |= {f"blk.0.{name}.weight": ("F32", (128,)) for name in ("attn_q_norm", "attn_k_norm")}
    return File(values, tensors)
