"""The states that a draft model learns from: hidden layers of the target model and its final state.

Two mistakes make a draft model learn from the wrong tensors without any error: a layer index that is
off by one, and a final state before the final norm where the trainer wants the one after it, or the
other way round. So states are chosen by the names of captures alone, which say both, and every index
that a trainer needs is worked out here.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, NamedTuple, Sequence

from ._decoder import NotInStoreError
from .store import ActivationStore

PRE_NORM, POST_NORM = "final.pre_norm", "final.post_norm"

_BLOCK_STATE = re.compile(r"blocks\.(\d+)\.resid_(pre|post)")


def hidden_state_index(capture: str) -> int | None:
    """vLLM's and speculators' layer id of a residual stream; None for any other capture.

    0 is the input of block 0, block L's output is L + 1. In transformers' output_hidden_states these
    are the indices too, but for the last block's output: there stands the state after the final norm.
    """
    if capture == "embed":
        return 0
    match = _BLOCK_STATE.fullmatch(capture)
    return int(match[1]) + (match[2] == "post") if match else None


class SampleStates(NamedTuple):
    """One sample, in the store's framework."""

    hidden: list[Any]  # [tokens, width] of each hidden layer, in order.
    final: Any  # [tokens, width].
    input_ids: Any  # int64 [tokens].
    loss_mask: Any  # bool [tokens], or None if the store has none.


class DraftStates:
    """Which captures of a store are the hidden layers and which one is the final state."""

    def __init__(self, store: ActivationStore, hidden: Sequence[str] | None, final: str) -> None:
        """
        @param hidden  Captures, in the order in which the trainer joins them. None: every block output
                       that was captured except the last block's, rising.
        @param final   PRE_NORM or POST_NORM: what the trainer wants.
        @raise NotInStoreError  One is not there, or holds not every token. @raise ValueError  No hidden
                                layer, or layers of different widths.
        """
        if not store.parts:
            raise NotInStoreError(f"{_names(store)}: no part is complete yet")
        self.store = store
        self.final = _final_capture(store, final)
        self.hidden = list(_block_outputs(store) if hidden is None else hidden)
        if not self.hidden:
            raise NotInStoreError(f"{_names(store)}: no block output was captured beside the final "
                                  "state; extract with --capture resid_post@... for the layers that "
                                  "the draft model reads")
        if len(set(self.hidden)) != len(self.hidden):
            raise ValueError(f"a hidden layer is named twice: {', '.join(self.hidden)}")
        widths = set()
        for key in {key.store: key for key in store.parts}.values():
            part = store.part(key)
            for capture in (*self.hidden, self.final):
                members = part.members(capture)
                if "" not in members:
                    raise ValueError(f"{capture} is not a state of the model")
                info = part.info(members[""])
                if info.rows is not None:
                    raise NotInStoreError(
                        f"{store.paths[key.store]}: {capture} holds only the tokens of {info.rows}; "
                        "a draft model needs every token: capture it with positions=all")
                widths.add(info.width)
        if len(widths) > 1:
            raise ValueError(f"states of different widths {sorted(widths)} cannot be joined")
        self.width: int = widths.pop()

    @property
    def layer_ids(self) -> list[int | None]:
        """hidden_state_index() of each hidden layer: `eagle_aux_hidden_state_layer_ids` and
        `target_layer_ids` of speculators."""
        return [hidden_state_index(capture) for capture in self.hidden]

    @property
    def block_ids(self) -> list[int | None]:
        """Index of the block whose output each hidden layer is, -1 for embeddings: SpecForge's
        `aux_hidden_state_layer_ids`, one less than layer_ids."""
        return [None if index is None else index - 1 for index in self.layer_ids]

    def read(self, sample: int) -> SampleStates:
        """@raise DamagedStoreError"""
        values = self.store.sample(sample, list(dict.fromkeys((*self.hidden, self.final))))
        return SampleStates([values[capture] for capture in self.hidden], values[self.final],
                            values["input_ids"], values.get("loss_mask"))


def _final_capture(store: ActivationStore, final: str) -> str:
    captures = store.captures
    if final in captures:
        return final
    if final == PRE_NORM:  # The last block's output by its other name.
        last = _last_blocks(store)
        if len(last) == 1 and last <= set(captures):
            return last.pop()
    raise NotInStoreError(
        f"{_names(store)}: {final}, the final state {'before' if final == PRE_NORM else 'after'} the "
        f"final norm, was not captured and this trainer needs it; extract with --capture {final}")


def _block_outputs(store: ActivationStore) -> list[str]:
    """Captured block outputs but the last block's, by the names asked for."""
    last = _last_blocks(store)
    outputs = {index: name for name in reversed(store.captures) if name not in last
               and name != "embed" and (index := hidden_state_index(name)) is not None}
    return [outputs[index] for index in sorted(outputs)]


def _last_blocks(store: ActivationStore) -> set[str]:
    """Output of the last block of each store's model."""
    names = set()
    for path in store.paths:
        with open(os.path.join(path, "job.json"), encoding="utf-8") as file:
            layers = json.load(file)["identity"].get("layers")
        if layers is not None:
            names.add(f"blocks.{layers - 1}.resid_post")
    return names


def _names(store: ActivationStore) -> str:
    return ", ".join(store.paths)
