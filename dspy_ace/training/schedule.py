"""Which examples each step sees: derived from the seed, so there is nothing to store."""

from __future__ import annotations

import random
from typing import NamedTuple


class Batch(NamedTuple):
    """One step's place in the run.

    Args:
        step: counted from 1.
        epoch: counted from 1.
        examples: positions in the trainset.
        ends_epoch: whether it is the last of its epoch.
    """

    step: int
    epoch: int
    examples: tuple[int, ...]
    ends_epoch: bool


def schedule(size: int, epochs: int, batch_size: int, seed: int) -> list[Batch]:
    """The batches of a run over `size` examples: every epoch sees each once, in an order of its own."""
    batches: list[Batch] = []
    for epoch in range(1, epochs + 1):
        order = list(range(size))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for start in range(0, size, batch_size):
            examples = tuple(order[start : start + batch_size])
            batches.append(Batch(len(batches) + 1, epoch, examples, start + batch_size >= size))
    return batches
