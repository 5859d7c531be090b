"""Samples of several callers embedded together."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tripletmas.serve.batches import Batches
from tripletmas.serve.encoder import cheapest


class Lengths:
    """Embeds a text as its length; waits until it may, and refuses the text "bad"."""

    def __init__(self):
        self.batches: list[list] = []
        self.may = threading.Event()

    def __call__(self, samples) -> Tensor:
        assert self.may.wait(10)
        self.batches.append(list(samples))
        if "bad" in samples:
            raise ValueError("bad")
        return torch.tensor([[float(len(sample))] for sample in samples])


def answers(asked: list[list[str]], *, most: int, drop: tuple[int, ...] = ()) -> tuple[list, list[list[str]]]:
    """What each caller got, who all ask while the first is embedded, and what was embedded together."""

    async def tried():
        embed, thread = Lengths(), ThreadPoolExecutor(1)
        batches = Batches(embed, thread, most=most)
        tasks = [asyncio.create_task(batches.embed(asked[0]))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(batches.embed(samples)) for samples in asked[1:]]
        await asyncio.sleep(0.05)
        for number in drop:
            tasks[number].cancel()
        embed.may.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        thread.shutdown()
        return [each.tolist() if isinstance(each, Tensor) else type(each) for each in found], embed.batches

    return asyncio.run(tried())


def test_what_comes_meanwhile_is_embedded_together_and_everyone_gets_their_own():
    found, batches = answers([["a"], ["bb", "ccc"], ["dddd"], ["eeeee"], ["f"]], most=4)
    assert found == [[[1.0]], [[2.0], [3.0]], [[4.0]], [[5.0]], [[1.0]]]
    # the first was alone; of those that came meanwhile, as many as 4 samples hold
    assert batches == [["a"], ["bb", "ccc", "dddd", "eeeee"], ["f"]]


def test_one_at_once_where_that_is_asked_for_and_who_brings_more_is_not_cut():
    assert answers([["a"], ["b"], ["c", "d"]], most=1)[1] == [["a"], ["b"], ["c", "d"]]


def test_who_has_gone_is_not_embedded():
    found, batches = answers([["a"], ["bb"], ["ccc"]], most=8, drop=(1,))
    assert found == [[[1.0]], asyncio.CancelledError, [[3.0]]]
    assert batches == [["a"], ["ccc"]]


def test_one_that_fails_fails_alone():
    found, batches = answers([["a"], ["bb"], ["bad"], ["ccc"]], most=8)
    assert found == [[[1.0]], [[2.0]], ValueError, [[3.0]]]
    assert batches == [["a"], ["bb", "bad", "ccc"], ["bb"], ["bad"], ["ccc"]]


@pytest.mark.parametrize(
    ("took", "best"),
    [
        ({1: 8, 2: 7, 4: 6, 8: 5, 16: 4, 32: 3}, 32),
        ({1: 8, 2: 7, 4: 6.9, 8: 1}, 2),  # 4 gain less than 5 %: what is beyond is not tried
        ({1: 8, 2: 7, 4: 14}, 2),
        ({1: 8, 2: 9}, 1),
    ],
)
def test_as_many_together_as_gain(took, best):
    assert cheapest(took.__getitem__) == best


@pytest.mark.parametrize("most", [1, 3, 32])
def test_all_are_answered(most):
    asked = [["x" * (1 + (7 * number) % 5)] * (1 + number % 3) for number in range(40)]
    found, batches = answers(asked, most=most)
    assert found == [[[float(len(sample))] for sample in samples] for samples in asked]
    assert sum(map(len, batches)) == sum(map(len, asked))
