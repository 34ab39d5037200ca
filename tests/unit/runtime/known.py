"""The log lines of the newest known SGLang, as the archive has them."""

from pathlib import Path

from qwen_runtime.log_lines import LogLines

FOLDER = Path(__file__).resolve().parents[3] / "operator" / "qwen_operator" / "engines"
KNOWN = LogLines.parse((FOLDER / "sglang_0_5_23" / "log_lines.json").read_text(encoding="utf-8"))
