"""Makes the checkpoints that the tests serve and inspect. Nothing is downloaded: weights are random.

Runs with the engine image's Python (torch, transformers, tokenizers): `python3 make_models.py DESTINATION`.
A checkpoint's folder name is what a test calls it by; two of them say something untrue about the size.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTEXT_TOKENS = 4096
TRAINING_LINE = "hello world, the quick brown fox jumps over the lazy dog. system user assistant"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one Qwen2 model; `shard` is the most bytes that one weight file may hold."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    shard: str


TINY = Shape(hidden=128, intermediate=256, layers=2, heads=4, kv_heads=2, shard="1GB")
# About 45 MB in bfloat16, so three files.
LARGER = Shape(hidden=512, intermediate=1408, layers=8, heads=8, kv_heads=8, shard="20MB")
SHARDED = Shape(hidden=128, intermediate=256, layers=6, heads=4, kv_heads=2, shard="1MB")


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the spot: its alphabet holds every byte, so that any text can be encoded."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([TRAINING_LINE] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def save(folder: Path, shape: Shape) -> None:
    """Writes a whole checkpoint: config, tokenizer, weights of a fixed seed in bfloat16."""
    words = tokenizer()
    config = Qwen2Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        vocab_size=-(-len(words) // 64) * 64,
        bos_token_id=None,
        eos_token_id=words.convert_tokens_to_ids(END),
        pad_token_id=words.convert_tokens_to_ids(END_OF_TEXT),
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=shape.shard)
    words.save_pretrained(folder)


def copy(source: Path, name: str) -> Path:
    return shutil.copytree(source, source.with_name(name))


def shards(folder: Path) -> list[Path]:
    """The weight files in order; more than one when the checkpoint has an index."""
    return sorted(folder.glob("*.safetensors"))


def declare(folder: Path, name: str) -> None:
    """Lets the config name another model than it describes."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_name_or_path": name}, indent=2, sort_keys=True))


def make_broken(tiny: Path, sharded: Path) -> None:
    """The checkpoints that an inspection has to refuse, each broken in one way."""
    config = copy(tiny, "bad-config") / "config.json"
    config.write_text(config.read_text()[:60])
    cut = shards(copy(sharded, "truncated"))[1]
    with cut.open("r+b") as handle:
        handle.truncate(cut.stat().st_size * 2 // 3)
    for path in copy(tiny, "no-tokenizer").iterdir():
        if path.name.startswith("tokenizer") or path.suffix == ".jinja":
            path.unlink()
    for path in shards(copy(tiny, "no-weights")):
        path.unlink()


def make_readable(root: Path) -> None:
    """save_pretrained gives weights the mode 0600, which the engine's user cannot open."""
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def main(root: Path) -> None:
    tiny, sharded = root / "tiny-qwen2", root / "sharded"
    save(tiny, TINY)
    save(sharded, SHARDED)
    large_in_disguise = root / "tiny-0.5B"
    save(large_in_disguise, LARGER)
    declare(large_in_disguise, "Qwen/Qwen1.5-0.5B-Chat")
    declare(copy(tiny, "Qwen1.5-72B-Chat"), "Qwen/Qwen1.5-72B-Chat")
    make_broken(tiny, sharded)
    unreadable = copy(sharded, "unreadable")
    make_readable(root)
    shards(unreadable)[1].chmod(0o600)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
