"""What the benchmarks share: aligned output and a JSON file of every number."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns, the first left-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for line in (header, *rows):
        cells = [c.ljust(w) if not i else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        print("  ".join(cells), flush=True)


def write_json(path: Path | None, numbers: dict[str, object]) -> None:
    """Write the numbers with the machine they are from, if a path is given."""
    if path is None:
        return
    import torch

    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if torch.cuda.is_initialized():
        machine["gpu"] = torch.cuda.get_device_name()
    path.write_text(json.dumps({"machine": machine, **numbers}, indent=1) + "\n")
