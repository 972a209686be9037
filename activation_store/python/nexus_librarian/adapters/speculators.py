"""SpeculatorsDataset: samples in the form of speculators' own dataset, straight from a store."""

from __future__ import annotations

import os
from typing import Any, Sequence

import torch
from torch.utils.data import Dataset

from .._states import PRE_NORM, DraftStates
from ..store import ActivationStore


class SpeculatorsDataset(Dataset):
    """What speculators' ArrowDataset is, without files in between.

        dataset = SpeculatorsDataset("acts", max_len=8192)
        train, val = dataset.split(0.9)
        loader = speculators.train.dataloader._setup_dataloader(train, total_seq_len=8192, ...)

    The store needs the block outputs that the draft model reads and the final state before the final
    norm (speculators applies the norm itself): --capture eagle3, or layers and final.pre_norm. The
    draft model's `target_layer_ids` are `.layer_ids`. May be pickled; its samples are those that the
    store had when it was made.
    """

    def __init__(self, store: ActivationStore | str | os.PathLike | Sequence[str | os.PathLike],
                 hidden: Sequence[str] | None = None, *, max_len: int | None = None,
                 hidden_states_dtype: torch.dtype = torch.bfloat16, nonfinite: str = "raise",
                 samples: Sequence[int] | None = None) -> None:
        """
        @param hidden     Captures that are the draft model's inputs, in order. None: every block output
                          that was captured except the last block's, rising.
        @param max_len    Longer samples are cut to it. None: never.
        @param hidden_states_dtype  What speculators' collator converts states to; items keep the
                          store's type.
        @param nonfinite  A sample with NaN or infinity: "raise", or "drop": its item is None, which
                          speculators' collator counts and leaves out.
        @param samples    Which samples, by number; None: all.
        @raise NotInStoreError  A capture is not there, or holds not every token.
        """
        if nonfinite not in ("raise", "drop"):
            raise ValueError(f"nonfinite is 'raise' or 'drop', not {nonfinite!r}")
        if not isinstance(store, ActivationStore):
            store = ActivationStore(store, framework="torch")
        if store.arrays.name != "torch":
            raise ValueError("the store was opened for numpy; speculators needs torch tensors")
        self._states = DraftStates(store, hidden, PRE_NORM)
        self._samples = list(range(len(store)) if samples is None else samples)
        self._nonfinite = nonfinite
        self.max_len = max_len
        self.hidden_states_dtype = hidden_states_dtype
        lengths = store.lengths[self._samples].tolist()
        # The name and the type that speculators' batch sampler reads.
        self.approx_lengths: list[int] = (
            lengths if max_len is None else [min(length, max_len) for length in lengths])

    @property
    def hidden(self) -> list[str]:
        """Captures of `hidden_states`, in the order of its columns."""
        return list(self._states.hidden)

    @property
    def layer_ids(self) -> list[int | None]:
        """speculators' `target_layer_ids` of the hidden layers; None for what is no block output."""
        return self._states.layer_ids

    @property
    def hidden_size(self) -> int:
        return self._states.width

    def split(self, train_ratio: float) -> tuple[SpeculatorsDataset, SpeculatorsDataset]:
        """(the first train_ratio of the samples, the others), cut where speculators cuts."""
        at = int(len(self) * train_ratio)
        if not 0 < at < len(self):
            raise ValueError(f"train_ratio={train_ratio} of {len(self)} samples leaves one side empty")
        return self._subset(self._samples[:at]), self._subset(self._samples[at:])

    def _subset(self, samples: Sequence[int]) -> SpeculatorsDataset:
        return SpeculatorsDataset(
            self._states.store, self.hidden, max_len=self.max_len, samples=samples,
            hidden_states_dtype=self.hidden_states_dtype, nonfinite=self._nonfinite)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor] | None:
        """
        @return  {"hidden_states": [T, layers * hidden], "verifier_last_hidden_states": [T, hidden],
                  before the final norm; "input_ids": int64 [T]; "loss_mask": bool [T], True for every
                  token if the store has none; "lengths": int64 [1]; "position_ids": int64 [T]}
        @raise DamagedStoreError
        """
        number = self._samples[index]
        sample = self._states.read(number)
        length = self.approx_lengths[index]
        hidden = torch.cat([state[:length] for state in sample.hidden], dim=1)
        final = sample.final[:length]
        if not (_finite(hidden) and _finite(final)):
            if self._nonfinite == "drop":
                return None
            raise ValueError(f"{', '.join(self._states.store.paths)}: sample {number} has NaN or "
                             "infinity; nonfinite='drop' leaves such samples out")
        mask = sample.loss_mask
        return {
            "hidden_states": hidden,
            "input_ids": sample.input_ids[:length],
            "verifier_last_hidden_states": final,
            "loss_mask": (torch.ones(length, dtype=torch.bool) if mask is None else mask[:length]),
            "lengths": torch.tensor([length]),
            "position_ids": torch.arange(length),
        }


def _finite(values: Any) -> bool:
    # A sum of finite bfloat16 could overflow; the extremes cannot, and NaN spreads to both.
    return values.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())
