"""Time of `t2 list` beside an empty Typer app, for registries of 100, 1,000 and 10,000 experts.

    python tests/benchmarks/list_speed.py [--runs 5] [--json FILE]

"first" is the first list after the experts were copied in from elsewhere, with nothing remembered: each manifest is
parsed. "list" and "--json" are those that follow. All are whole processes; they are run in turn, and the medians are
shown. The experts are copies of one that ships, under other names.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from table import print_table, write_json

from t2cli.paths import shipped_registry

EMPTY = "import typer\napp = typer.Typer()\n@app.command()\ndef empty(): pass\napp()\n"
SIZES = (100, 1_000, 10_000)


def fill(registry: Path, count: int) -> None:
    """Write `count` experts as another program would copy them, last week."""
    source = next(shipped_registry().glob("*/math/1"))
    manifest, z = (source / "expert.yaml").read_text(), (source / "z.safetensors").read_bytes()
    then = time.time() - 7 * 86400
    for index in range(count):
        name = f"expert-{index:05d}"
        folder = registry / source.parents[1].name / name / "1"
        folder.mkdir(parents=True)
        (folder / "expert.yaml").write_text(manifest.replace("name: math\n", f"name: {name}\n", 1))
        os.utime(folder / "expert.yaml", (then, then))
        if index < 3:  # listing never opens them
            (folder / "z.safetensors").write_bytes(z)


def seconds(arguments: list[str], home: Path) -> float:
    """Return how long a process takes; its last line must show what was asked for."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, check=True, env={**os.environ, "T2_HOME": str(home)}
    )
    taken = time.perf_counter() - started
    if "list" in arguments and b"expert-00099" not in done.stdout:
        raise SystemExit(f"{arguments} listed something else: {done.stdout[-200:]!r}")
    return taken


def measure(count: int, runs: int, folder: Path) -> dict[str, list[float]]:
    """Return the times in seconds of each way, for a registry of `count` experts."""
    registry, empty, home = folder / f"registry-{count}", folder / "empty.py", folder / f"home-{count}"
    fill(registry, count)
    empty.write_text(EMPTY)
    shown = ["-m", "t2cli", "list", "--registry", str(registry)]
    ways = {"empty app": [str(empty)], "list": shown, "--json": [*shown, "--json"]}
    seconds(ways["empty app"], home)
    times = {"first": [seconds(shown, home)]}
    for _ in range(runs):
        for way, arguments in ways.items():
            times.setdefault(way, []).append(seconds(arguments, home))
    return times


def main() -> None:
    """Measure each size and print medians and ratios to the empty app."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows, numbers = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for count in SIZES:
            times = numbers[str(count)] = measure(count, options.runs, Path(folder))
            median = {way: statistics.median(values) for way, values in times.items()}
            ratios = [f"{median[way] / median['empty app']:.2f}" for way in ("list", "--json")]
            ways = ("empty app", "first", "list", "--json")
            rows.append([f"{count:,}", *(f"{median[way]:.3f}" for way in ways), *ratios])
    print_table(("experts", "empty app", "first", "list", "--json", "list / empty", "--json / empty"), rows)
    write_json(options.json, {"seconds": numbers})


if __name__ == "__main__":
    main()
