#!/usr/bin/env python3
"""What drawing a scene costs, against what an image costs in a training step.

    .venv/bin/python scripts/bench_drawing.py
    .venv/bin/python scripts/bench_drawing.py --size 32 --rounds 9

One process, one thread, time of the process: blocks of drawing and blocks of steps take turns, and of each the median
over the rounds counts. A step is forward, backward and SGD of conv4 on a batch that is already drawn. A ratio below 1
says that training waits less for the drawing than for itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from tripletmas.models.networks import conv4
from tripletmas.objectives.facts.scenes.drawing import draw
from tripletmas.objectives.facts.scenes.scenes import draw_scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    planned = seconds(lambda: draw_scenes(options.batch, seed=1, part="train"))
    scenes = draw_scenes(options.batch, seed=0, part="train")
    images = torch.stack([draw(scene, options.size) for scene in scenes]).float() / 255
    model = conv4(tuple(images.shape[1:]), width=options.width)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

    step()
    drawing, training = [], []
    for _ in range(options.rounds):
        drawing.append(seconds(lambda: [draw(scene, options.size) for scene in scenes]) / options.batch)
        training.append(seconds(step) / options.batch)
    drawn, trained = statistics.median(drawing), statistics.median(training)
    print(f"planning {planned / options.batch * 1e3:.3f} ms a scene")
    print(f"drawing  {drawn * 1e3:.3f} ms an image, {1 / drawn:.0f} images/s")
    print(f"step     {trained * 1e3:.3f} ms an image, {1 / trained:.0f} images/s (conv4, width {options.width})")
    print(f"ratio    {drawn / trained:.2f} (drawing / step)")


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    main()
