"""ActivationDataset: a store's samples for torch's DataLoader."""

from __future__ import annotations

import os
from typing import Any, Callable, Sequence

import numpy as np

from .collate import read_adjacent
from .store import ActivationStore, Sample


class ActivationDataset:
    """A map-style dataset of a store's samples.

        loader = DataLoader(ActivationDataset(store, captures=[...]), batch_size=8, shuffle=True,
                            num_workers=2, collate_fn=collate_padded)

    Cheap to pickle (paths and part numbers), so workers may be forked or spawned. Its samples are
    those that the store had when the dataset was made.
    """

    def __init__(self, store: ActivationStore | str | os.PathLike, captures: Sequence[str] | None = None,
                 *, transform: Callable[[Sample], Any] | None = None) -> None:
        """
        @param captures   As ActivationStore.sample(); None: all.
        @param transform  Called with each sample; its result is the item.
        @raise NotInStoreError  A capture that the store does not have.
        """
        self.store = store if isinstance(store, ActivationStore) else ActivationStore(store)
        self.captures = list(self.store.captures if captures is None else captures)
        self._transform = transform
        self._samples = len(self.store)
        if self._samples:
            for capture in self.captures:
                self.store.capture_info(capture)

    def __len__(self) -> int:
        return self._samples

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample: int64 [samples]. For samplers that pack bins."""
        return self.store.lengths[: self._samples]

    def __getitem__(self, index: int) -> Any:
        """One sample, as ActivationStore.sample() gives it, or what `transform` makes of it."""
        if not -self._samples <= index < self._samples:
            raise IndexError(f"no sample {index}; the dataset has {self._samples}")
        sample = self.store.sample(index % self._samples, self.captures)
        return sample if self._transform is None else self._transform(sample)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """What DataLoader calls for a batch, from torch 2.0 on: [self[i] for i in indices], with the
        rows of the samples in memory one after the other."""
        ours = type(self).__getitem__ is ActivationDataset.__getitem__
        in_range = all(-self._samples <= index < self._samples for index in indices)
        if self._transform is not None or not ours or not in_range or not indices:
            return [self[index] for index in indices]
        places = [self.store.locate(index % self._samples) for index in indices]
        return read_adjacent([(self.store.part(key), place) for key, place in places],
                             self.captures, self.store.arrays)
