"""SpecForge's offline form for EAGLE-3: rows_{g}-{g+2000}/data_{i}.ckpt, written by torch.save.

@source  sgl-project/SpecForge 0.2.0, runtime/data_plane/offline_reader.py, algorithms/eagle3/data.py.
"""

from __future__ import annotations

import pickle
from typing import BinaryIO

import numpy as np
import torch

from .._states import DraftStates, SampleStates

_FOLDER_RECORDS = 2000


class SpecForgeRecords:
    """`input_ids` and `loss_mask` int64 [S], `aux_hidden_state` [1, S, L * d] of the hidden layers,
    `hidden_state` [1, S, d], the final state after the final norm."""

    def __init__(self, states: DraftStates) -> None:
        self.states = states

    def file_name(self, record: int) -> str:
        group = record // _FOLDER_RECORDS * _FOLDER_RECORDS
        return f"rows_{group}-{group + _FOLDER_RECORDS}/data_{record}.ckpt"

    def file_bytes(self, tokens: int) -> int:
        return tokens * (16 + 2 * (len(self.states.hidden) + 1) * self.states.width)

    def is_finite(self, states: SampleStates) -> bool:
        return all(bool(torch.isfinite(state).all()) for state in (*states.hidden, states.final))

    def write(self, file: BinaryIO, sample: int, states: SampleStates) -> int:
        mask = states.loss_mask
        torch.save({
            "input_ids": states.input_ids,
            "loss_mask": torch.ones_like(states.input_ids) if mask is None else mask.long(),
            "hidden_state": states.final.unsqueeze(0),
            "aux_hidden_state": torch.cat(states.hidden, dim=1).unsqueeze(0),
        }, file)
        return file.tell()

    def token_ids(self, path: str) -> np.ndarray | None:
        try:
            return np.array(torch.load(path, map_location="cpu")["input_ids"].tolist(), np.int64)
        except (OSError, RuntimeError, KeyError, AttributeError, TypeError, pickle.UnpicklingError):
            return None
