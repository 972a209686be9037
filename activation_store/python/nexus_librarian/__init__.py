"""Reads Librarian's activation stores: samples, datasets and streams for PyTorch or numpy.

    store = ActivationStore("acts")
    store.sample(17)["blocks.12.resid_post"]        # torch.bfloat16 [tokens, hidden]

Names are loaded when they are first used, so importing the package costs no import of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._decoder import DamagedStoreError, LaterFormatError, NotInStoreError, StoreError
    from .collate import collate_packed, collate_padded
    from .dataset import ActivationDataset
    from .store import ActivationStore
    from .stream import ActivationStream, token_batches

_MODULE_OF = {
    "ActivationStore": "store",
    "ActivationDataset": "dataset",
    "ActivationStream": "stream",
    "token_batches": "stream",
    "collate_padded": "collate",
    "collate_packed": "collate",
    "StoreError": "_decoder",
    "DamagedStoreError": "_decoder",
    "NotInStoreError": "_decoder",
    "LaterFormatError": "_decoder",
}
__all__ = sorted(_MODULE_OF)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module("." + _MODULE_OF[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
