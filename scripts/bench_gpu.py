#!/usr/bin/env python3
"""All that a machine with a GPU should be asked, in one call of less than eight minutes, into one JSON file.

    .venv/bin/python scripts/bench_gpu.py --json gpu.json
    .venv/bin/python scripts/bench_gpu.py --parts numbers importance-vit --json gpu.json
    .venv/bin/python scripts/bench_gpu.py --small --device cpu --together        # a rehearsal, without a GPU

Each part runs in a process of its own, with a limit on its time: one that fails, hangs or ends its process takes
nothing with it, and what it had found until then is kept, with the sentence of its error. The parts are in
`bench_gpu_parts.py` and `bench_gpu_layers.py`: whether the numbers are the CPU's; importance of ViT-B/16, ResNet-50 and
a MiniLM, beside a plain pass, the way that kernels replace, and vmap; what Python waits for; a protected training step;
embedding; search; kernels layer by layer and tile by tile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# name -> seconds that it may take; in this order, the most important first: later ones may find no time left
LIMITS = {
    "machine": 40,
    "numbers": 70,
    "importance-vit": 90,
    "importance-resnet": 90,
    "importance-minilm": 60,
    "waiting": 40,
    "step": 50,
    "embedding": 40,
    "search": 40,
    "layers": 100,
}
ALL_SECONDS = 465  # of all parts, so that the whole stays below eight minutes


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found there")
    parser.add_argument("--parts", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models: whether all runs, not how fast")
    parser.add_argument("--together", action="store_true", help="in this one process, without limits on time")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="of each part, in place of its own")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)  # a part's own process writes there
    options = parser.parse_args()
    if options.device == "cpu" and not options.small:
        parser.error("on a CPU there is the rehearsal alone: --small")
    return options


def main() -> None:
    options = parsed()
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    if options.write:
        run_part(options.parts[0], options, options.write)
        return
    if options.device != "cpu" and (fault := no_device(options.device)):
        sys.exit(f"{fault}. Nothing was measured. A rehearsal on the CPU: --small --device cpu --together")
    began, found = time.monotonic(), {}
    for name in options.parts:
        left = ALL_SECONDS - (time.monotonic() - began)
        found[name] = asked(name, options, left)
        if options.json:  # after each part: whatever comes, this much is kept
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print_all(found)
    print(f"\n{time.monotonic() - began:.0f} s")


def no_device(name: str) -> str | None:
    """Why there is no such device, in a process of its own: this one starts others, and keeps off the GPU."""
    ask = f"import torch; torch.zeros(1, device={name!r}).item()"
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    last = (asked.stderr.strip().splitlines() or ["it does not say why"])[-1]
    return f"There is no GPU here that torch can use as {name!r} ({last})" if asked.returncode else None


# --- a part, and what becomes of it


def asked(name: str, options: argparse.Namespace, left: float) -> dict[str, Any]:
    """What a part found, with its error or None."""
    limit = min(options.limit or LIMITS[name], left)
    if limit < 5 and not options.limit:
        return {"rows": [], "error": "not begun: there was no time left", "seconds": 0.0}
    print(f"{name} ...", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "part.json"
        if options.together:
            run_part(name, options, file)
            error = None
        else:
            error = in_own_process(name, options, file, limit)
        part = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"rows": [], "error": None}
    part["error"] = part["error"] or error
    part["seconds"] = round(time.monotonic() - began, 1)
    if part["error"]:
        print(f"  {part['error']}", flush=True)
    return part


def in_own_process(name: str, options: argparse.Namespace, file: Path, limit: float) -> str | None:
    command = [sys.executable, __file__, "--parts", name, "--device", options.device, "--write", str(file)]
    try:
        ended = subprocess.run([*command, *(["--small"] if options.small else [])], timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.3g} s"
    return f"its process ended with status {ended.returncode}" if ended.returncode else None


def run_part(name: str, options: argparse.Namespace, file: Path) -> None:
    """Write what a part finds, row by row, to the file."""
    rows: list[dict[str, Any]] = []

    def note(**row: Any) -> None:
        rows.append(row)
        print("  " + "  ".join(f"{key} {worded(value)}" for key, value in row.items()), flush=True)
        write(None)

    def write(error: str | None) -> None:
        part = file.with_suffix(".new")
        part.write_text(json.dumps({"rows": rows, "error": error}), encoding="utf-8")
        part.replace(file)  # whole, whenever this process is stopped

    try:
        import bench_gpu_layers
        import bench_gpu_parts

        parts = {**bench_gpu_parts.PARTS, "layers": bench_gpu_layers.layers}
        parts[name](bench_gpu_parts.Asked(options.device, options.small, note))
        write(None)
    except Exception as error:  # of any kind: the other parts go on
        write(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


# --- printing


def worded(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:.4g}"


def print_all(found: dict[str, dict[str, Any]]) -> None:
    for name, part in found.items():
        print_part(name, part)
    failed = [name for name, part in found.items() if part["error"]]
    print(f"\nnot whole: {', '.join(failed)}" if failed else "\nall parts are whole")


def print_part(name: str, part: dict[str, Any]) -> None:
    print(f"\n## {name} ({part['seconds']:.0f} s)\n")
    columns = list(dict.fromkeys(key for row in part["rows"] for key in row))
    table = [columns, ["---"] * len(columns)]
    table += [[worded(row[key]) if key in row else "" for key in columns] for row in part["rows"]]
    for line in table if columns else []:
        print(f"| {' | '.join(line)} |")
    if part["error"]:
        print(f"\nnot whole: {part['error']}")


if __name__ == "__main__":
    main()
