"""ActivationStream: an endless source of batches in an order that any number of processes agree on."""

from __future__ import annotations

import importlib.util
import os
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from . import _decoder, _plan
from ._token_batches import TokenWindows, row_counts
from .collate import read_packed, read_padded
from .store import ActivationStore, PartKey, Sample

if importlib.util.find_spec("torch"):
    from torch.utils.data import IterableDataset as _Base
    from torch.utils.data import get_worker_info
else:
    _Base = object

    def get_worker_info() -> None:
        return None


_STATE_VERSION = 1


class ActivationStream(_Base):
    """Batches of one epoch after the other, shuffled, split over ranks and workers, resumable.

        for batch in ActivationStream(store, captures=[...], tokens_per_batch=4096, seed=1): ...

    What a batch is:
    - `tokens_per_batch=n`: n rows of many samples, mixed: {capture: [n, width], "input_ids": [n]};
      the last batch of an epoch may have fewer. For sparse autoencoders.
    - `tokens_per_batch=n, packed=True`: whole samples, at most n tokens (a longer one alone), joined
      by collate_packed().
    - `batch_size=b`: b samples, joined by `collate` (collate_padded() if none is given).
    - none of these: a sample.

    Order: parts are cut into blocks of neighbouring samples of a shard; blocks are shuffled over the
    epoch, samples within windows of many blocks. It depends on seed, epoch and the epoch's parts
    alone: batch j goes to rank j % world_size, and there DataLoader's workers take turns, so
    DataLoader(stream, batch_size=None, num_workers=w) gives the same batches in the same order for
    every w.

    The parts of an epoch are those complete when it begins (of the first: when the stream is made), so
    a trainer may read while extraction runs. Iterating runs one epoch, iterating again the next; a
    loop that was left goes on where it was. DataLoader's workers are copies of the stream: call
    set_epoch() before each epoch.
    """

    def __init__(self, store: ActivationStore | str | os.PathLike | Sequence[str | os.PathLike],
                 captures: Sequence[str] | None = None, *, shuffle: bool = True, seed: int = 0,
                 batch_size: int | None = None, tokens_per_batch: int | None = None,
                 packed: bool = False, collate: Callable[[list[Sample]], Any] | None = None,
                 rank: int = 0, world_size: int = 1, drop_last: bool = False,
                 drop_first_tokens: int = 0, scale: str | dict[str, float] | None = None,
                 block_tokens: int = 4096, window_tokens: int = 1 << 18, mix_batches: int = 8,
                 lanes: int = 4) -> None:
        """
        @param captures    As ActivationStore.sample(); None: all.
        @param rank, world_size  This process and how many there are; see torch.distributed.
        @param drop_last   Leaves out a last smaller batch, and the batches that not every rank gets,
                           so that all ranks have equally many.
        @param drop_first_tokens  Rows at each sample's beginning that token batches leave out: 1 for
                           BOS, whose activations are huge.
        @param scale       {capture: factor} of token batches, or "sqrt_width": the factor that makes
                           the mean L2 norm of a row the root of its width, measured once on some
                           samples and kept in the state.
        @param block_tokens   Rows of a shuffled block; a power of two stays within a shard.
        @param window_tokens  Samples are shuffled within windows of that many tokens.
        @param mix_batches, lanes  Token batches mix the rows of mix_batches batches; `lanes` such
                           windows are open at a time and batches come from them in turn. Memory is
                           lanes * mix_batches * tokens_per_batch rows, over all workers; reading is
                           cheapest if world_size * workers divides `lanes`.
        """
        self.store = store if isinstance(store, ActivationStore) else ActivationStore(store)
        if packed and tokens_per_batch is None:
            raise ValueError("packed=True needs tokens_per_batch: the most tokens of a batch")
        if batch_size is not None and tokens_per_batch is not None:
            raise ValueError("give batch_size or tokens_per_batch, not both")
        for name, value in [("batch_size", batch_size), ("tokens_per_batch", tokens_per_batch),
                            ("world_size", world_size), ("block_tokens", block_tokens),
                            ("window_tokens", window_tokens), ("mix_batches", mix_batches),
                            ("lanes", lanes)]:
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: at least 1 is needed")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} is not one of {world_size}")
        mixed = tokens_per_batch is not None and not packed
        if (scale is not None or drop_first_tokens) and not mixed:
            raise ValueError("scale and drop_first_tokens are for token batches: tokens_per_batch "
                             "without packed")
        if collate is not None and tokens_per_batch is not None:
            raise ValueError("collate is for batches of samples; tokens_per_batch joins its own")
        self._captures = None if captures is None else list(captures)
        self._rank = rank
        self._mixed, self._collate = mixed, collate
        # What decides the batches, beside the parts; a state fits no other stream.
        self._settings: dict[str, Any] = {
            "captures": self._captures, "shuffle": shuffle, "batch_size": batch_size,
            "tokens_per_batch": tokens_per_batch, "packed": packed,
            "world_size": world_size, "drop_last": drop_last,
            "drop_first_tokens": drop_first_tokens, "block_tokens": block_tokens,
            "window_tokens": window_tokens, "mix_batches": mix_batches, "lanes": lanes}
        self._scale = dict(scale) if isinstance(scale, dict) else None
        if isinstance(scale, str):
            if scale != "sqrt_width":
                raise ValueError(f"scale={scale!r}: the one rule there is is 'sqrt_width'")
            self._scale = norm_scales(self.store, self.captures)
        self.seed, self.epoch = seed, 0
        # Of this epoch, sorted, because the order of batches must not depend on which part was
        # completed first. None: not begun.
        self._parts: list[PartKey] | None = sorted(self.store.parts)
        self._base = 0  # Batches of this rank that were delivered before the workers began.
        self._taken = 0  # Of those after, the ones this process delivered.
        self._plan: _EpochPlan | None = None

    @property
    def captures(self) -> list[str]:
        """The captures of a batch."""
        return self.store.captures if self._captures is None else self._captures

    @property
    def scale(self) -> dict[str, float]:
        """Factor of each capture in token batches; empty: none."""
        return dict(self._scale or {})

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch, with the parts that are complete now."""
        self.store.refresh()
        self.epoch, self._base, self._taken = epoch, 0, 0
        self._parts, self._plan = sorted(self.store.parts), None

    def batches(self) -> int:
        """Batches that this rank gets in this epoch."""
        self._begin()
        return self._planned().rank_batches

    def _begin(self) -> None:
        if self._parts is None:
            # Workers must agree on the parts, so only the process that made the stream looks.
            if get_worker_info() is None:
                self.store.refresh()
            self._parts = sorted(self.store.parts)

    def _planned(self) -> _EpochPlan:
        if self._plan is None:
            self._plan = _EpochPlan(self.store, self._parts, self.captures, self._mixed,
                                    self._settings, self._rank, self.seed, self.epoch)
        return self._plan

    def __iter__(self) -> Iterator[Any]:
        self._begin()
        plan = self._planned()
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        windows = TokenWindows(plan.rows, self.captures, self.store, self._scale) \
            if self._mixed else None
        while True:
            batch = self._base + worker + workers * self._taken
            if batch >= plan.rank_batches:
                break
            value = self._value(plan, windows, plan.number(batch))
            self._taken += 1  # Before the batch is out: a state saved after it begins behind it.
            yield value
        self.epoch += 1
        self._base, self._taken, self._plan = 0, 0, None
        self._parts = None if info is None else self._parts

    def _value(self, plan: _EpochPlan, windows: TokenWindows | None, number: int) -> Any:
        if windows is not None:
            return windows.batch(number)
        places = [(self.store.part(key), place) for key, place in plan.samples(number)]
        captures, arrays = self.captures, self.store.arrays
        if self._settings["packed"]:
            return read_packed(places, captures, arrays)
        if self._collate is None and self._settings["batch_size"] is not None:
            return read_padded(places, captures, arrays)
        samples = [part.sample(place, captures, arrays) for part, place in places]
        return samples[0] if self._collate is None else self._collate(samples)

    def state_dict(self, delivered: int | None = None) -> dict[str, Any]:
        """Where the stream is, as plain values; the next batch is the first one after loading it.

        @param delivered  Batches taken from a DataLoader with workers since it was made: the
                          workers are ahead of the trainer, so only he knows. None: those this
                          process itself has iterated over.
        """
        self._begin()
        info = get_worker_info()
        base, taken = self._base, self._taken
        if info is None:
            base, taken = base + (taken if delivered is None else delivered), 0
        return {"version": _STATE_VERSION, "seed": self.seed, "epoch": self.epoch,
                "delivered": base, "worker_taken": taken, "settings": dict(self._settings),
                "scale": self._scale,
                "stores": [{"path": path, "identity": identity,
                            "parts": [key.part for key in self._parts if key.store == store]}
                           for store, (path, identity) in
                           enumerate(zip(self.store.paths, self.store.identities))]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where state_dict() was; seed and epoch come from the state.

        @raise ValueError       A stream of other settings. @raise StoreError  Another store.
        @raise NotInStoreError  A part that the epoch reads is not there.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(f"not a state of ActivationStream: version {state.get('version')!r}")
        for name, value in self._settings.items():
            if state["settings"].get(name) != value:
                raise ValueError(f"the state is of a stream with {name}="
                                 f"{state['settings'].get(name)!r}; this one has {value!r}")
        stores = state["stores"]
        if len(stores) != len(self.store.paths):
            raise _decoder.StoreError(f"the state is of {len(stores)} stores; the stream reads "
                                      f"{', '.join(self.store.paths)}")
        for saved, path, identity in zip(stores, self.store.paths, self.store.identities):
            if saved["identity"] != identity:
                raise _decoder.StoreError(f"{path}: another store than the state's, which was "
                                          f"{saved['path']} (identity {saved['identity'][:16]})")
        self.store.refresh()
        there = set(self.store.parts)
        wanted = [PartKey(store, part) for store, saved in enumerate(stores)
                  for part in saved["parts"]]
        for key in wanted:
            if key not in there:
                raise _decoder.NotInStoreError(f"{self.store.paths[key.store]}: part {key.part}, "
                                               "which the state's epoch reads, is not there")
        self.seed, self.epoch, self._scale = state["seed"], state["epoch"], state["scale"]
        self._base, self._taken = state["delivered"], state["worker_taken"]
        self._parts, self._plan = wanted, None


class _EpochPlan:
    """Which samples, or rows of which samples, each batch of an epoch holds."""

    def __init__(self, store: ActivationStore, parts: Sequence[PartKey], captures: Sequence[str],
                 mixed: bool, settings: dict[str, Any], rank: int, seed: int, epoch: int) -> None:
        opened = [store.part(key) for key in parts]
        counts = [len(part.lengths) for part in opened]
        self._parts = parts
        self._part = np.repeat(np.arange(len(parts)), counts)
        self._place = np.concatenate([np.arange(n) for n in counts] or [np.zeros(0, np.int64)])
        tokens = np.concatenate([part.lengths for part in opened] or [np.zeros(0, np.int64)])
        order = np.arange(len(tokens))
        if settings["shuffle"]:
            begins = np.concatenate([part.offsets[:-1] for part in opened] or
                                    [np.zeros(0, np.int64)])
            block = (self._part << 40) + begins // settings["block_tokens"]
            order = _plan.shuffled_samples(block, tokens, settings["window_tokens"], seed, epoch)
        self._order, size = order, settings["tokens_per_batch"]
        self.rows = None
        if mixed:
            window = settings["mix_batches"]
            begin, count = row_counts(opened, captures, settings["drop_first_tokens"])
            lanes = settings["lanes"] if settings["shuffle"] else 1
            self.rows = _RowPlan(self, begin[order], count[order], size, size * window, lanes,
                                 settings["shuffle"], seed, epoch)
            total, remainder = divmod(self.rows.total, size)
            last_is_short = remainder > 0
            batches = total + last_is_short
            self._batch_order = _plan.interleaved(batches, window, lanes)
        else:
            if settings["packed"]:
                self._begins = _plan.greedy_batches(tokens[order], size)
                last_is_short = False
            else:
                self._begins = _plan.fixed_batches(len(order), settings["batch_size"] or 1)
                last_is_short = len(order) % (settings["batch_size"] or 1) > 0
            batches = len(self._begins) - 1
            self._batch_order = np.arange(batches)
        world_size = settings["world_size"]
        if settings["drop_last"]:
            if last_is_short:
                self._batch_order = self._batch_order[self._batch_order != batches - 1]
            batches = len(self._batch_order) // world_size * world_size
            self._batch_order = self._batch_order[:batches]
        self._batch_order = self._batch_order[rank::world_size]
        self.rank_batches = len(self._batch_order)

    def number(self, batch: int) -> int:
        """Number in the epoch of this rank's batch."""
        return int(self._batch_order[batch])

    def samples(self, number: int) -> list[tuple[PartKey, int]]:
        """Part and place of each sample of a batch."""
        return [self.place(i) for i in range(self._begins[number], self._begins[number + 1])]

    def place(self, position: int) -> tuple[PartKey, int]:
        """Part and place of the sample at a position of the epoch's order."""
        sample = self._order[position]
        return self._parts[self._part[sample]], int(self._place[sample])


class _RowPlan:
    """Rows of an epoch in the order of its samples, cut into windows and batches."""

    def __init__(self, plan: _EpochPlan, begin: np.ndarray, count: np.ndarray, batch_rows: int,
                 window_rows: int, lanes: int, shuffle: bool, seed: int, epoch: int) -> None:
        self._plan, self._begin, self._count = plan, begin, count
        self._ends = np.cumsum(count)
        self.total = int(self._ends[-1]) if len(count) else 0
        self.batch_rows, self.window_rows, self.lanes = batch_rows, window_rows, lanes
        self._shuffle, self._seed, self._epoch = shuffle, seed, epoch

    def pieces(self, window: int) -> list[tuple[PartKey, int, int, int]]:
        """(part, place of the sample, begin, end) of the rows of a window; the rows are counted from
        the sample's first."""
        first = window * self.window_rows
        last = min(first + self.window_rows, self.total)
        pieces = []
        at = int(np.searchsorted(self._ends, first, side="right"))
        while first < last:
            begin = first - int(self._ends[at] - self._count[at])
            take = min(int(self._count[at]) - begin, last - first)
            if take:
                skip = int(self._begin[at])
                pieces.append((*self._plan.place(at), skip + begin, skip + begin + take))
            first, at = first + take, at + 1
        return pieces

    def permutation(self, window: int) -> np.ndarray:
        """Order in which the rows of a window go to its batches."""
        rows = min(self.window_rows, self.total - window * self.window_rows)
        if not self._shuffle:
            return np.arange(rows)
        return np.argsort(_plan.random_numbers(self._seed, self._epoch, rows, 1 + window),
                          kind="stable")


def norm_scales(store: ActivationStore, captures: Sequence[str],
                samples: int = 64) -> dict[str, float]:
    """{capture: factor that makes the mean L2 norm of a row the root of its width}, measured on
    samples spread evenly over the store, without each one's first token."""
    if len(store) == 0:
        raise _decoder.NotInStoreError(f"{', '.join(store.paths)}: no part is complete yet, so "
                                       "there is nothing to measure a scale on")
    for capture in captures:
        if "" not in store.capture_info(capture):
            raise ValueError(f"{capture} is a group of arrays: give its scale, or leave it out")
    arrays = store.arrays
    norms: dict[str, list[float]] = {capture: [] for capture in captures}
    width: dict[str, int] = {}
    for at in np.unique(np.linspace(0, len(store) - 1, samples).astype(np.int64)):
        sample = store.sample(int(at), captures)
        for capture in captures:
            values = arrays.to_float(sample[capture])
            width[capture] = values.shape[1]
            norms[capture] += (values * values).sum(1).tolist()[1 if len(values) > 1 else 0:]
    return {capture: float(width[capture] ** 0.5 / np.sqrt(norms[capture]).mean())
            for capture in captures}


def token_batches(store: ActivationStore | str | os.PathLike, capture: str, n: int,
                  **options: Any) -> Iterator[Any]:
    """Batches [n, width] of one capture's rows, one epoch; options as ActivationStream."""
    for batch in ActivationStream(store, [capture], tokens_per_batch=n, **options):
        yield batch[capture]
