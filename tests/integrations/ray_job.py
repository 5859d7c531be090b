"""python ray_job.py FOLDER RUN: embeds FOLDER/files by two actors, slowly, then by the model of a run.

At last as the page says, of the run FOLDER/runs/shop and FOLDER/photos.

FOLDER/actors gets a file for each actor's process, FOLDER/done.json what came out.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray

from tripletmas.integrations.ray import embed_files

FOLDER = Path(sys.argv[1])
PAGE = Path(__file__).resolve().parents[2] / "docs" / "ray.md"


class Slow:
    """Gives the bytes that a file ends with."""

    def __init__(self) -> None:
        (FOLDER / "actors").mkdir(exist_ok=True)
        (FOLDER / "actors" / str(os.getpid())).touch()

    def __call__(self, paths: Sequence[str]) -> np.ndarray:
        time.sleep(0.3)
        return np.array([list(Path(path).read_bytes()[-4:]) for path in paths], dtype=np.float32)


def slow_parts(out: str) -> list[str]:
    found = embed_files(Slow, FOLDER / "files", FOLDER / out, identity="slow, 1", part_size=40)
    return [path.name for path in found]


def main() -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    done: dict[str, object] = {"first": slow_parts("slow")}
    changed = sorted((FOLDER / "files").rglob("*.pgm"))[500]
    changed.write_bytes(changed.read_bytes()[:-4] + b"\x01\x02\x03\x04")
    done["changed"] = [str(changed), *slow_parts("slow")]
    (changed.parent / "broken.pgm").write_bytes(b"no image")
    try:
        embed_files(sys.argv[2], FOLDER / "files", FOLDER / "model", actors=3)
    except ValueError as error:
        done["complaint"] = str(error)
    os.chdir(FOLDER)
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    exec(compile(block, "ray.md", "exec"), {"__name__": "ray.md"})
    (FOLDER / "done.json").write_text(json.dumps(done))


if __name__ == "__main__":
    main()
