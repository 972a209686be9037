"""The order of an epoch: a pure function of seed, epoch and the samples, whoever computes it.

Numbers come from Philox's raw output, which numpy keeps the same for all versions (its shuffles are
not), so that a state saved today continues tomorrow.
"""

from __future__ import annotations

import numpy as np


def shuffled_samples(block: np.ndarray, tokens: np.ndarray, window_tokens: int, seed: int,
                     epoch: int) -> np.ndarray:
    """Shuffles blocks of neighbouring samples, then the samples in windows of several blocks.

    @param block   int64 [samples]: block of each sample, rising.
    @param tokens  int64 [samples]: tokens of each.
    @return        int64 [samples]: every sample once.
    """
    if len(block) == 0:
        return np.zeros(0, np.int64)
    numbers = random_numbers(seed, epoch, 2 * len(block))
    _, block = np.unique(block, return_inverse=True)
    blocks = int(block[-1]) + 1
    order = np.argsort(numbers[:blocks], kind="stable")
    block_tokens = np.bincount(block, tokens, blocks).astype(np.int64)[order]
    window = np.empty(blocks, np.int64)
    window[order] = (np.cumsum(block_tokens) - 1) // window_tokens
    return np.lexsort((numbers[len(block):], window[block]))


def random_numbers(seed: int, epoch: int, count: int, stream: int = 0) -> np.ndarray:
    """uint64 [count]; independent for every (seed, epoch, stream)."""
    counter = np.array([0, 0, 0, stream], np.uint64)
    key = np.array([seed % 2**64, epoch % 2**64], np.uint64)
    return np.random.Philox(counter=counter, key=key).random_raw(count)


def greedy_batches(tokens: np.ndarray, tokens_max: int) -> np.ndarray:
    """Begins of batches of consecutive samples of at most tokens_max tokens; a longer sample is a
    batch of its own. int64 [batches + 1], the last is len(tokens)."""
    begins, ends = [0], np.cumsum(tokens)
    while begins[-1] < len(tokens):
        first = begins[-1]
        limit = (ends[first - 1] if first else 0) + tokens_max
        begins.append(max(first + 1, int(np.searchsorted(ends, limit, side="right"))))
    return np.array(begins, np.int64)


def fixed_batches(items: int, size: int) -> np.ndarray:
    """As greedy_batches() for batches of `size` items; the last may be smaller."""
    return np.append(np.arange(0, items, size), items).astype(np.int64)


def interleaved(batches: int, window_batches: int, lanes: int) -> np.ndarray:
    """The order in which batches are taken from `lanes` windows at a time, one from each in turn.

    @param window_batches  Batches in a window; batch i lies in window i // window_batches.
    @return  int64 [batches]: while windows are full, batch j is of lane j % lanes.
    """
    number = np.arange(batches)
    window, place = number // window_batches, number % window_batches
    return np.lexsort((window % lanes, place, window // lanes))
