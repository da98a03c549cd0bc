"""Time to the first token of `t2 chat`, start-up included, beside a bare transformers script with the same model.

    python tests/benchmarks/first_token.py [--runs 5] [--json FILE]

Both are whole processes, run in turn. The clock starts with the process and stops when the first character of the
answer arrives through the pipe. The default base must be there already (run `t2 chat hello` once).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

QUESTION = "What is 17 + 25?"

BARE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer
folder, question = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
length = inputs["input_ids"].shape[1]
with torch.inference_mode():
    first = model.generate(**inputs, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(first[0, length:]), flush=True)
"""


def seconds_to_first_byte(command: list[str]) -> float:
    """Return how long a new process takes until it writes to stdout."""
    started = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.monotonic() - started
        process.stdout.read()
    if not first.strip() or process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed with exit code {process.returncode}")
    return seconds


def main() -> None:
    """Run both in turn and print medians and the ratio pair by pair."""
    from t2cli.models.catalog import locate

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = str(locate("smollm2-135m").folder)
    chat = [sys.executable, "-m", "t2cli", "chat", QUESTION]
    bare = [sys.executable, "-c", BARE, folder, QUESTION]
    for command in (chat, bare):  # files into the page cache
        seconds_to_first_byte(command)
    pairs = [(seconds_to_first_byte(chat), seconds_to_first_byte(bare)) for _ in range(options.runs)]
    rows = {"t2 chat": [t2 for t2, _ in pairs], "bare transformers": [plain for _, plain in pairs]}
    rows["ratio"] = [t2 / plain for t2, plain in pairs]
    print(f"{'':20}{'min':>8}{'median':>8}{'max':>8}")
    for name, values in rows.items():
        print(f"{name:20}{min(values):8.2f}{statistics.median(values):8.2f}{max(values):8.2f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
