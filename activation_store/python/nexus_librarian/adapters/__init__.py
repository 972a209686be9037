"""A store as the data of other people's trainers, with no files in between.

    SpeculatorsDataset     what speculators' loaders and collator take
    sae_lens_batches       the data provider of SAELens' SAETrainer and MultiSAETrainer

Both need torch; neither needs the trainer's package.
"""

from .sae_lens import TokenBatches, sae_lens_batches
from .speculators import SpeculatorsDataset

__all__ = ["SpeculatorsDataset", "TokenBatches", "sae_lens_batches"]
