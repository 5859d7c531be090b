#!/usr/bin/env python3
"""A picture of drawn scenes with every fact that holds in them: the one in docs/.

.venv/bin/python scripts/show_scenes.py --out docs/shapes-facts.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from tripletmas.objectives.facts.scenes.drawing import draw
from tripletmas.objectives.facts.scenes.scenes import PARTS, draw_scenes, facts_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=PARTS, default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--columns", type=int, default=7)
    parser.add_argument("--rows", type=int, default=2)
    options = parser.parse_args()
    figure, grid = plt.subplots(
        options.rows, options.columns, figsize=(1.75 * options.columns, 3.1 * options.rows), squeeze=False
    )
    scenes = draw_scenes(options.rows * options.columns, seed=options.seed, part=options.part)
    for axes, scene in zip(grid.flat, scenes, strict=True):
        axes.imshow(draw(scene, options.size).permute(1, 2, 0).numpy())
        axes.set_axis_off()
        facts = sorted(facts_of(scene), key=lambda fact: (fact.order, fact.parts))
        axes.text(0, 1.15 * options.size, "\n".join(map(str, facts)), fontsize=7.5, va="top")
    figure.tight_layout(h_pad=6)
    figure.savefig(options.out, dpi=110, facecolor="white")


if __name__ == "__main__":
    sys.exit(main())
