"""Peak memory of `t2 decompose` on a sharded checkpoint of more than 1 GB, over the interpreter with torch.

    python tests/benchmarks/decompose_memory.py [--folder FOLDER] [--layers 12] [--hidden 2048] [--wide 5632]
                                                [--dtype bfloat16] [--basis-dtype float32] [--json FILE]
    python tests/benchmarks/decompose_memory.py --square 4096

Writes a random Llama (one shard per layer) into FOLDER, a temporary one if none is given, and decomposes it in a new
process with a T2_HOME of its own. The bound is 4 float64 copies of the largest weight plus 300 MB, whatever the size
of the model. --square makes the largest weights, two of them in float32 in one layer, r x r: there the eigenvectors
take the most beside the weight. Resident memory counts mapped pages of the checkpoint; anonymous memory, sampled, does
not. Exit code 1 if the bound is broken.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MB = 1_000_000
PROBE = "import torch, resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def write_model(folder: Path, layers: int, hidden: int, wide: int, dtype: str) -> None:
    """Write a random checkpoint, one shard per layer; q_proj and o_proj are square."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in LlamaForCausalLM(config).named_parameters()}
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    for layer in ["embed_tokens", "model.norm", *(f"layers.{place}." for place in range(layers))]:
        file = f"model-{len(set(weight_map.values())):05}.safetensors"
        names = [name for name in shapes if layer in name]
        save_file(
            {n: (torch.randn(shapes[n], generator=generator) / hidden**0.5).to(getattr(torch, dtype)) for n in names},
            folder / file,
            {"format": "pt"},
        )
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def anonymous_memory(pid: int) -> int:
    """Return the anonymous resident bytes of a process, 0 where the platform does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def measured(folder: Path, home: str, basis_dtype: str) -> tuple[dict[str, object], int]:
    """Return what `t2 decompose --json` says and the most anonymous memory it was seen with."""
    command = [sys.executable, "-m", "t2cli", "decompose", str(folder), "--device", "cpu", "--json"]
    most = 0
    with subprocess.Popen(
        [*command, "--basis-dtype", basis_dtype],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "T2_HOME": home},
    ) as process:
        ended = threading.Event()

        def watch() -> None:
            nonlocal most
            while not ended.is_set():
                most = max(most, anonymous_memory(process.pid))
                time.sleep(0.005)

        thread = threading.Thread(target=watch)
        thread.start()
        assert process.stdout is not None
        out = process.stdout.read()
        ended.set()
        thread.join()
    if process.returncode:
        raise SystemExit(f"t2 decompose failed with exit code {process.returncode}")
    record: dict[str, object] = json.loads(out)
    return record, most


def main() -> None:
    """Print the figures and compare them with the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--wide", type=int, default=5632)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--basis-dtype", choices=["bfloat16", "float32"], default="float32")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--square", type=int, metavar="R", help="two weights R x R and thin ones beside them")
    options = parser.parse_args()
    if options.square:
        options.layers, options.hidden, options.wide, options.dtype = 1, options.square, 64, "float32"
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / "random-llama"
        folder.mkdir(parents=True, exist_ok=True)
        # In a process of its own: what this one has used at most would count as the first use of those it starts.
        sizes = (folder, options.layers, options.hidden, options.wide, options.dtype)
        writer = multiprocessing.get_context("spawn").Process(target=write_model, args=sizes)
        writer.start()
        writer.join()
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        bare = int(subprocess.check_output([sys.executable, "-c", PROBE])) * 1024
        record, anonymous = measured(folder, scratch, options.basis_dtype)
    peak = int(str(record["peak_memory_bytes"]))
    bound = 4 * 8 * options.hidden * max(options.hidden, options.wide) + 300 * MB
    row = {
        "checkpoint_bytes": size,
        "seconds": record["seconds"],
        "bare_bytes": bare,
        "peak_bytes": peak,
        "over_bare_bytes": peak - bare,
        "bound_bytes": bound,
        "anonymous_bytes": anonymous,
    }
    for name, value in row.items():
        print(
            f"{name.removesuffix('_bytes'):12}{f'{int(value) / MB:10.0f} MB' if 'bytes' in name else f'{value:10} s'}"
        )
    if options.json:
        options.json.write_text(json.dumps(row, indent=1))
    if peak - bare > bound:
        raise SystemExit("the bound is broken")


if __name__ == "__main__":
    main()
