"""Makes the checkpoints that the tests serve and inspect. Nothing is downloaded.

The one that gets served learns a few chat exchanges by heart; the weights of the others are random.
Runs with the engine image's Python (torch, transformers, tokenizers): `python3 make_models.py DESTINATION`.
A checkpoint's folder name is what a test calls it by; two of them say something untrue about the size.
"""

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import GGUFWriter, TokenType
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTEXT_TOKENS = 4096
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# The parts of the template of a hybrid model that decide its parsers: tools as JSON, and reasoning that can be off.
HYBRID_TEMPLATE = (
    "{%- if tools %}{{- '<tools>' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}"
    "{{- '</tools>\\n<tool_call>\\n</tool_call>' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
SYSTEM = "You are a helpful assistant."
ANSWERS = {
    "Tell me something about large language models.": (
        "A large language model has learnt from a great deal of text to say which word comes next. "
        "I am a tiny one that has learnt a few sentences by heart, and this is one of them."
    ),
    "hello": "Hello! I am a tiny language model, and I know a few sentences by heart.",
    "hello world": "Hello from a tiny language model on this cluster!",
    "Who are you?": (
        "I am a tiny model in the shape of Qwen2, made by the test bed to show that everything around me works."
    ),
    "What is Kubernetes?": (
        "Kubernetes runs containers on many machines and keeps them in the state that you have asked for. "
        "An operator taught it to run me."
    ),
}
STEPS = 600
LEARNING_RATE = 5e-3
# Learnt at a higher temperature than it is asked at, an answer is far more certain when it is asked for.
TEMPERATURE_TAUGHT = 2.0
# At temperature 1 an answer may stray once in a thousand times.
LEAST_CHANCE = 0.999


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one Qwen2 model; `shard` is the most bytes that one weight file may hold."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    shard: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request's messages, and the tokens of the prompt and of the answer with its end."""

    messages: list[dict[str, str]]
    prompt: list[int]
    answer: list[int]


TINY = Shape(hidden=128, intermediate=256, layers=2, heads=4, kv_heads=2, shard="1GB")
# About 50 MB in bfloat16, so three files.
LARGER = Shape(hidden=512, intermediate=1408, layers=8, heads=8, kv_heads=8, shard="20MB")
SHARDED = Shape(hidden=128, intermediate=256, layers=6, heads=4, kv_heads=2, shard="1MB")


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the spot: its alphabet holds every byte, so that any text can be encoded."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([SYSTEM, "system user assistant", *ANSWERS, *ANSWERS.values()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def untrained(shape: Shape, words: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A model with the random weights of a fixed seed, in float32."""
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
        dtype="float32",
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config)


def save(folder: Path, model: Qwen2ForCausalLM, words: PreTrainedTokenizerFast, shard: str = "1GB") -> None:
    """Writes a whole checkpoint: config, tokenizer, weights in bfloat16, in files of at most `shard`."""
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard)
    words.save_pretrained(folder)


def exchanges(words: PreTrainedTokenizerFast) -> list[Exchange]:
    """Every question with its answer, without and with the system message."""
    made = []
    for question, answer in ANSWERS.items():
        for before in ([], [{"role": "system", "content": SYSTEM}]):
            messages = [*before, {"role": "user", "content": question}]
            prompt = words.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            made.append(Exchange(messages, words.encode(prompt), words.encode(answer + END)))
    return made


def logits_of(model: Qwen2ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """The model's opinion of every next token: rows x tokens x vocabulary, in float32."""
    # Without a mask of its own each layer attends causally. Were transformers to make one, it would ask CUDA about
    # streams, and the engine image's stand-in for CUDA crashes the process then.
    return model(input_ids=ids, attention_mask={"full_attention": None}, use_cache=False).logits.float()


def learn(model: Qwen2ForCausalLM, lessons: list[Exchange]) -> None:
    """Trains until the answers come by heart; the prompts themselves are not learnt."""
    longest = max(len(lesson.prompt) + len(lesson.answer) for lesson in lessons)
    ids = torch.full((len(lessons), longest), model.config.pad_token_id)
    taught = torch.zeros_like(ids, dtype=torch.bool)
    for row, lesson in enumerate(lessons):
        start, end = len(lesson.prompt), len(lesson.prompt) + len(lesson.answer)
        ids[row, :end] = torch.tensor(lesson.prompt + lesson.answer)
        taught[row, start:end] = True
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    begin = time.monotonic()
    for _ in range(STEPS):
        logits = logits_of(model, ids)[:, :-1][taught[:, 1:]] / TEMPERATURE_TAUGHT
        loss = torch.nn.functional.cross_entropy(logits, ids[taught])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"{STEPS} steps in {time.monotonic() - begin:.1f} s, loss {loss.item():.1e}", flush=True)


def greedy(model: Qwen2ForCausalLM, prompt: list[int], at_most: int = 64) -> list[int]:
    """The answer at temperature 0, with its end unless that does not come within `at_most` tokens."""
    answer: list[int] = []
    while len(answer) < at_most and answer[-1:] != [model.config.eos_token_id]:
        answer.append(int(logits_of(model, torch.tensor([prompt + answer]))[0, -1].argmax()))
    return answer


def chance(model: Qwen2ForCausalLM, lesson: Exchange) -> float:
    """The probability of exactly this answer at temperature 1."""
    logits = logits_of(model, torch.tensor([lesson.prompt + lesson.answer]))[0, len(lesson.prompt) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(lesson.answer)[:, None]).sum().exp())


def examine(folder: Path) -> None:
    """Asks the checkpoint as saved, in bfloat16. Raises SystemExit when an answer is not known by heart."""
    words = PreTrainedTokenizerFast.from_pretrained(folder)
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    for lesson in exchanges(words):
        text = words.decode(greedy(model, lesson.prompt))
        likely = chance(model, lesson)
        print(f"{lesson.messages} -> {text} (chance {likely:.6f})", flush=True)
        if text != words.decode(lesson.answer):
            raise SystemExit(f"the saved model answers {lesson.messages} with {text!r}, which it was not taught")
        if likely < LEAST_CHANCE:
            raise SystemExit(f"the taught answer to {lesson.messages} has chance {likely:.6f}, below {LEAST_CHANCE}")
    strange = torch.randint(len(words), (1, 512))
    if not logits_of(model, strange).isfinite().all():
        raise SystemExit("the saved model computes numbers that are not finite for a prompt of random tokens")


def copy(source: Path, name: str) -> Path:
    return shutil.copytree(source, source.with_name(name))


def shards(folder: Path) -> list[Path]:
    """The weight files in order; more than one when the checkpoint has an index."""
    return sorted(folder.glob("*.safetensors"))


def declare(folder: Path, name: str) -> None:
    """Lets the config name another model than it describes."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_name_or_path": name}, indent=2, sort_keys=True))


def make_hybrid(tiny: Path) -> None:
    """A fine-tune under its own name, with the chat template of a hybrid model."""
    folder = copy(tiny, "support-bot")
    (folder / "chat_template.jinja").write_text(HYBRID_TEMPLATE)
    config = folder / "tokenizer_config.json"
    record = json.loads(config.read_text())
    record.pop("chat_template", None)
    config.write_text(json.dumps(record))


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GGUF_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    """The name of a tensor in a GGUF file."""
    if name in GGUF_OUTER:
        return GGUF_OUTER[name]
    _, _, layer, *module, part = name.split(".")
    return f"blk.{layer}.{GGUF_NAMES['.'.join(module)]}.{part}"


def write_gguf(tiny: Path, writer: GGUFWriter) -> None:
    """The tiny model as one GGUF file, or as several if the writer splits: matrices in 16 bits, the rest in 32."""
    config, words = json.loads((tiny / "config.json").read_text()), json.loads((tiny / "tokenizer.json").read_text())
    tokens, kinds = (
        [f"[PAD{index}]" for index in range(config["vocab_size"])],
        [TokenType.UNUSED] * config["vocab_size"],
    )
    for text, index in words["model"]["vocab"].items():
        tokens[index], kinds[index] = text, TokenType.NORMAL
    for added in words["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = added["content"], TokenType.CONTROL
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in words["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in load_file(tiny / "model.safetensors").items():
        values = tensor.float().numpy()
        writer.add_tensor(gguf_name(name), values if values.ndim == 1 else values.astype("float16"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_gguf(tiny: Path) -> None:
    """A folder of GGUF files, as repositories hold them: a whole one, one that is cut off, and one in parts."""
    folder = tiny.with_name("gguf")
    folder.mkdir()
    write_gguf(tiny, GGUFWriter(folder / "tiny-f16.gguf", "qwen2"))
    write_gguf(tiny, GGUFWriter(folder / "parts.gguf", "qwen2", split_max_tensors=8))
    whole = (folder / "tiny-f16.gguf").read_bytes()
    (folder / "cut.gguf").write_bytes(whole[: len(whole) * 2 // 3])


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
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    words = tokenizer()
    tiny, sharded = root / "tiny-qwen2", root / "sharded"
    pupil = untrained(TINY, words)
    learn(pupil, exchanges(words))
    save(tiny, pupil, words)
    with torch.no_grad():
        examine(tiny)
    save(sharded, untrained(SHARDED, words), words, SHARDED.shard)
    large_in_disguise = root / "tiny-0.5B"
    save(large_in_disguise, untrained(LARGER, words), words, LARGER.shard)
    declare(large_in_disguise, "Qwen/Qwen1.5-0.5B-Chat")
    declare(copy(tiny, "Qwen1.5-72B-Chat"), "Qwen/Qwen1.5-72B-Chat")
    make_hybrid(tiny)
    make_broken(tiny, sharded)
    make_gguf(tiny)
    unreadable = copy(sharded, "unreadable")
    make_readable(root)
    shards(unreadable)[1].chmod(0o600)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
