"""Makes the LoRA adapters that the tests serve and inspect, with the real PEFT.

Runs with the engine image's Python and PEFT beside it: `python3 make_adapters.py MODELS DESTINATION`. An adapter's
folder name is what a test calls it by. Their weights are random, so that each gives other answers than its base.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2ForCausalLM

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def make(base: Path, folder: Path, seed: int, rank: int, targets: list[str] | str, **more: object) -> None:
    """One adapter of a base, as PEFT saves it. lora_B is not zero, as it would be before any training."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    config = LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=targets, task_type="CAUSAL_LM", **more)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    adapted.save_pretrained(folder)


def main() -> None:
    models, root = Path(sys.argv[1]), Path(sys.argv[2])
    tiny = models / "tiny-qwen2"
    for number in range(10):
        make(tiny, root / f"style-{number}", number, 8, ATTENTION)
    make(tiny, root / "all-linear", 20, 16, "all-linear")
    make(tiny, root / "dora", 21, 8, ATTENTION, use_dora=True)
    make(models / "sharded", root / "of-another-base", 22, 8, ATTENTION)
    wrong = root / "wrong-rank"
    shutil.copytree(root / "style-0", wrong)
    config = json.loads((wrong / "adapter_config.json").read_text())
    (wrong / "adapter_config.json").write_text(json.dumps(config | {"r": 4}))
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


if __name__ == "__main__":
    main()
