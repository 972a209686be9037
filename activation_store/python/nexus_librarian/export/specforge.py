"""SpecForge's offline form for EAGLE-3: rows_{g}-{g+2000}/data_{i}.ckpt for torch.load.

@source  sgl-project/SpecForge 0.2.0, runtime/data_plane/offline_reader.py, algorithms/eagle3/data.py.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from .._states import DraftStates, SampleStates
from . import values
from .final_norm import FinalNorm
from .torch_file import read_int64, write_tensors

_FOLDER_RECORDS = 2000


class SpecForgeRecords:
    """`input_ids` and `loss_mask` int64 [S], `aux_hidden_state` [1, S, L * d] of the hidden layers,
    `hidden_state` [1, S, d], the final state after the final norm."""

    def __init__(self, states: DraftStates, norm: FinalNorm | None) -> None:
        """@param norm  Makes the state after the final norm of one before it; None: it is one."""
        self.states, self._norm = states, norm

    def file_name(self, record: int) -> str:
        group = record // _FOLDER_RECORDS * _FOLDER_RECORDS
        return f"rows_{group}-{group + _FOLDER_RECORDS}/data_{record}.ckpt"

    def file_bytes(self, tokens: int) -> int:
        return tokens * (16 + 2 * (len(self.states.hidden) + 1) * self.states.width)

    def is_finite(self, states: SampleStates) -> bool:
        return all(values.is_finite(state) for state in (*states.hidden, states.final))

    def write(self, file: BinaryIO, sample: int, states: SampleStates) -> int:
        ids, mask = states.input_ids, states.loss_mask
        final = states.final if self._norm is None else self._norm(states.final)
        write_tensors(file, {
            "input_ids": ids,  # First: token_ids() reads it.
            "loss_mask": np.ones(len(ids), np.int64) if mask is None else mask.astype(np.int64),
            "hidden_state": final[None],
            "aux_hidden_state": np.concatenate(states.hidden, axis=1)[None],
        })
        return file.tell()

    def token_ids(self, path: str) -> np.ndarray | None:
        return read_int64(path, 0)
