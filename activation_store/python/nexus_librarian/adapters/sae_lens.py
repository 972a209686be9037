"""sae_lens_batches: a store as the data provider of SAELens' trainers."""

from __future__ import annotations

import os
from typing import Any, Iterator, Sequence

import torch
from torch.utils.data import DataLoader

from ..store import ActivationStore
from ..stream import ActivationStream

_STATE_VERSION = 1


def sae_lens_batches(store: ActivationStore | str | os.PathLike | Sequence[str | os.PathLike],
                     captures: str | Sequence[str], batch_size: int, *, seed: int = 0,
                     shuffle: bool = True, drop_first_tokens: int = 1,
                     dtype: torch.dtype | None = torch.float32, num_workers: int = 0,
                     rank: int = 0, world_size: int = 1, **options: Any) -> TokenBatches:
    """Batches for SAETrainer(data_provider=...), without end.

        trainer = SAETrainer(cfg, sae, data_provider=sae_lens_batches("acts", "blocks.12.resid_post",
                                                                      cfg.train_batch_size_samples))

    @param captures    One name: batches are tensors. Several: dicts, for MultiSAETrainer; the rows of
                       all are the same tokens.
    @param batch_size  Rows of every batch; what is left at the end of an epoch is left out.
    @param drop_first_tokens  Tokens left out at each sample's beginning, where BOS stands, whose
                       activations are many times larger than all others.
    @param dtype       What rows are converted to, the SAE's own; None: the store's.
    @param num_workers DataLoader workers that read ahead; 0: this process reads.
    @param options     As ActivationStream: mix_batches, window_tokens, ...
    Rows are not scaled: SAELens' own normalize_activations does that.
    """
    if not isinstance(store, ActivationStore):
        store = ActivationStore(store, framework="torch")
    if store.arrays.name != "torch":
        raise ValueError("the store was opened for numpy; SAELens needs torch tensors")
    names = [captures] if isinstance(captures, str) else list(captures)
    stream = ActivationStream(store, names, tokens_per_batch=batch_size, seed=seed, shuffle=shuffle,
                              drop_first_tokens=drop_first_tokens, drop_last=True, rank=rank,
                              world_size=world_size, **options)
    return TokenBatches(stream, names, isinstance(captures, str), dtype, num_workers)


class TokenBatches:
    """An endless iterator of [batch_size, width], or of {capture: [batch_size, width]}."""

    def __init__(self, stream: ActivationStream, captures: list[str], single: bool,
                 dtype: torch.dtype | None, num_workers: int) -> None:
        self._stream, self._captures, self._single = stream, captures, single
        self._dtype, self._num_workers = dtype, num_workers
        self._delivered = 0  # Batches since the workers began.
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> TokenBatches:
        return self

    def __next__(self) -> Any:
        if self._batches is None:
            self._batches = self._begin()
        batch = next(self._batches, None)
        if batch is None:
            if self._num_workers:  # The workers' copies ended the epoch, not the stream itself.
                self._stream.set_epoch(self._stream.epoch + 1)
            self._batches = self._begin()
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError(f"{', '.join(self._stream.store.paths)}: fewer rows than one batch; "
                                 "take a smaller batch_size")
        self._delivered += 1
        if self._single:
            return self._converted(batch[self._captures[0]])
        return {capture: self._converted(batch[capture]) for capture in self._captures}

    def _begin(self) -> Iterator[Any]:
        self._delivered = 0
        if self._num_workers == 0:
            return iter(self._stream)
        return iter(DataLoader(self._stream, batch_size=None, num_workers=self._num_workers))

    def _converted(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self._dtype is None else rows.to(self._dtype)

    def state_dict(self) -> dict[str, Any]:
        """Where the batches are, as plain values."""
        delivered = self._delivered if self._num_workers else None
        return {"version": _STATE_VERSION, "stream": self._stream.state_dict(delivered)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the batch after the last one before state_dict().

        @raise ValueError  Batches of other settings. @raise StoreError  Another store.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(f"not a state of TokenBatches: version {state.get('version')!r}")
        self._stream.load_state_dict(state["stream"])
        self._batches, self._delivered = None, 0
