"""speculators' offline form: an Arrow data set beside hidden_states/hs_{i}.safetensors.

@source  vllm-project/speculators 0.9.0, train/data.py (ArrowDataset), data_generation/preprocessing.py,
         hs_connectors/transfer.py; datasets' save_to_disk for the folder of Arrow files.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, BinaryIO, Iterator

import numpy as np

from .._states import DraftStates, SampleStates
from . import values
from .output import Output
from .records import kept_samples
from .safetensors_file import SafetensorsFile, read_tensor
from .torch_file import write_value

_ARROW_FILE = "data-00000-of-00001.arrow"
_BATCH_TOKENS = 1 << 20  # Of the Arrow file; bounds memory.
_COLUMNS = ("input_ids", "loss_mask", "seq_len")


class SpeculatorsRecords:
    """hidden_states/hs_{i}.safetensors: `token_ids` int64 [S] and `hidden_states` [S, L + 1, d], of
    the L hidden layers and, last, the final state before the final norm."""

    def __init__(self, states: DraftStates, fp8: bool) -> None:
        self.states, self._fp8 = states, fp8

    def file_name(self, record: int) -> str:
        return f"hidden_states/hs_{record}.safetensors"

    def file_bytes(self, tokens: int) -> int:
        row = (len(self.states.hidden) + 1) * self.states.width
        return tokens * (8 + (row + 4 if self._fp8 else 2 * row))

    def is_finite(self, states: SampleStates) -> bool:
        return all(values.is_finite(state) for state in (*states.hidden, states.final))

    def write(self, file: BinaryIO, sample: int, states: SampleStates) -> int:
        kind = values.safetensors_name(states.final)
        layers = [values.bits(state) for state in (*states.hidden, states.final)]
        tensors: dict[str, tuple[str, np.ndarray]] = {"token_ids": ("I64", states.input_ids)}
        if self._fp8:
            floats = np.stack([values.to_float(layer) for layer in layers], axis=1)
            encoded, scales = values.quantized_fp8(floats)
            tensors["hidden_states_scales"] = ("F32", scales)
            tensors["hidden_states"] = ("F8_E4M3", encoded)
        else:
            tensors["hidden_states"] = (kind, np.stack(layers, axis=1))
        out = SafetensorsFile(file, {name: (kind, array.shape)
                                     for name, (kind, array) in tensors.items()},
                              {"sample": str(sample),
                               "captures": ",".join((*self.states.hidden, self.states.final))})
        for name, (_, array) in tensors.items():
            out.append(name, array)
        out.finish()
        return out.bytes

    def token_ids(self, path: str) -> np.ndarray | None:
        return read_tensor(path, "token_ids")


def write_data_set(output: Output, states: DraftStates, samples: int) -> None:
    """The Arrow data set and token_freq.pt, when every record is there."""
    import pyarrow as pa

    info = {"features": {
        **{name: {"feature": {"dtype": "int64", "_type": "Value"}, "_type": "Sequence"}
           for name in ("input_ids", "loss_mask")},
        "seq_len": {"dtype": "int64", "_type": "Value"}}}
    ids = pa.list_(pa.int64())
    schema = pa.schema([("input_ids", ids), ("loss_mask", ids), ("seq_len", pa.int64())],
                       metadata={"huggingface": json.dumps({"info": info})})
    frequencies: Counter[int] = Counter()
    with output.new_file(_ARROW_FILE) as file, pa.ipc.new_stream(file, schema) as stream:
        for rows in _batches(output, states, samples, frequencies):
            stream.write_batch(pa.record_batch(
                [pa.array([row[name] for row in rows], field.type)
                 for name, field in zip(_COLUMNS, schema)], schema=schema))
    with output.new_file("token_freq.pt") as file:
        write_value(file, dict(sorted(frequencies.items())))
    with output.new_file("dataset_info.json") as file:
        file.write(json.dumps({"citation": "", "description": "", "homepage": "", "license": "",
                               **info}, indent=2).encode())
    # Last, because load_from_disk() takes a folder without it for none.
    with output.new_file("state.json") as file:
        file.write(json.dumps({
            "_data_files": [{"filename": _ARROW_FILE}], "_fingerprint": states.store.identities[0][:16],
            "_format_columns": list(_COLUMNS), "_format_kwargs": {}, "_format_type": "torch",
            "_output_all_columns": False, "_split": None}, indent=2).encode())


def _batches(output: Output, states: DraftStates, samples: int,
             frequencies: Counter[int]) -> Iterator[list[dict[str, Any]]]:
    rows, tokens = [], 0
    for sample in kept_samples(output, samples):
        facts = states.store.sample(sample, [])
        ids = facts["input_ids"]
        mask = facts.get("loss_mask", np.ones(len(ids), np.bool_))
        seen, counts = np.unique(ids[mask], return_counts=True)
        frequencies.update(dict(zip(seen.tolist(), counts.tolist())))
        rows.append({"input_ids": ids, "loss_mask": mask.astype(np.int64), "seq_len": len(ids)})
        tokens += len(ids)
        if tokens >= _BATCH_TOKENS:
            yield rows
            rows, tokens = [], 0
    if rows:
        yield rows
