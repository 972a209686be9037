"""Hidden states against transformers' output_hidden_states, by every way out of a store.

Goal: no layer index is off by one and no final state is on the wrong side of the final norm, in
sample(), in the adapters and in the exports, for every golden family.
Method: hf:i for every i, in f32; each way's own numbers of layers (speculators' layer ids, SpecForge's
block ids) must find the state that transformers gives at that index. That the two final states differ
is checked too, else the test could not tell them apart.
"""

import importlib.util
import itertools

import numpy as np
import pytest

from export_support import (
    FAMILIES, as_f32, export_main, read_hidden_states, read_torch_file)
from support import GOLDEN, golden_meta, read_golden, read_safetensors, relative_error_per_token

pytest.importorskip("nexus_librarian")
from nexus_librarian import ActivationStore  # noqa: E402

F32_ERROR_MAX = 2e-5


class Family:
    """A golden family's store with every hidden state, and what transformers gave."""

    def __init__(self, name, librarian, folder):
        self.truth, self.names = read_golden(name), golden_meta(name)["hidden_states"]
        self.offsets = np.cumsum([0, *golden_meta(name)["sample_lengths"]])
        self.pre_norm, self.post_norm = self.truth["final.pre_norm"], self.truth["final.post_norm"]
        self.path = folder / "store"
        states = ",".join(f"hf:{index}" for index in range(len(self.names)))
        librarian("extract", GOLDEN / name / "model", "--tokens", GOLDEN / name / "tokens.safetensors",
                  "--out", self.path, "--dtype", "f32", "--part-tokens", 20,
                  "--capture", f"{states},final.pre_norm")
        captures = ActivationStore(self.path, framework="numpy").captures
        # The hidden layers by the names that were asked for, which is hf:i's order.
        self.hidden = [name for name in captures if not name.startswith("final")]
        assert len(self.hidden) == len(self.names) - 1
        worst = relative_error_per_token(self.pre_norm, self.post_norm)
        assert np.median(worst) > 100 * F32_ERROR_MAX, "the two final states are alike"

    def rows(self, sample):
        return slice(self.offsets[sample], self.offsets[sample + 1])

    def check(self, sample, states, final, final_truth):
        """`states`: {transformers' index: [tokens, width]} of a sample."""
        rows = self.rows(sample)
        assert list(states) == list(range(len(self.names) - 1))
        for index, state in states.items():
            assert_near(state, self.truth[self.names[index]][rows])
        assert_near(final, final_truth[rows])


def assert_near(got, truth):
    assert got.shape == truth.shape
    assert relative_error_per_token(as_f32(got), truth).max() <= F32_ERROR_MAX


@pytest.fixture(params=FAMILIES)
def family(request, librarian, memory_path):
    return Family(request.param, librarian, memory_path)


def test_samples_and_adapters_and_exports_give_transformers_hidden_states(family, memory_path):
    store = ActivationStore(family.path)
    for sample in range(len(store)):
        got = store.sample(sample)
        family.check(sample, {i: got[name] for i, name in enumerate(family.hidden)},
                     got["final.pre_norm"], family.pre_norm)
        assert_near(got["final.post_norm"], family.post_norm[family.rows(sample)])
    check_specforge(family, memory_path)
    check_shards(family, memory_path)
    if importlib.util.find_spec("pyarrow"):
        check_speculators_export(family, memory_path)
    if store.arrays.name == "torch":
        check_speculators_dataset(family)
        check_sae_batches(family)


def check_speculators_dataset(family):
    from nexus_librarian.adapters import SpeculatorsDataset
    dataset = SpeculatorsDataset(family.path, family.hidden)
    for sample in range(len(dataset)):
        item = dataset[sample]
        states = np.split(as_f32(item["hidden_states"]), len(family.hidden), axis=1)
        family.check(sample, dict(zip(dataset.layer_ids, states)),
                     item["verifier_last_hidden_states"], family.pre_norm)


def check_sae_batches(family):
    """Every row but each sample's first, the same token's in all captures, and nothing scaled."""
    from nexus_librarian.adapters import sae_lens_batches
    captures = [*family.hidden, "final.post_norm"]
    kept = np.ones(family.offsets[-1], np.bool_)
    kept[family.offsets[:-1]] = False
    batches = sae_lens_batches(family.path, captures, 1, seed=3)
    got = {name: [] for name in captures}
    for batch in itertools.islice(batches, int(kept.sum())):
        for name in captures:
            got[name].append(as_f32(batch[name]))
    truth = np.concatenate([family.truth[name][kept] for name in family.names], axis=1)
    values = np.concatenate([np.concatenate(got[name]) for name in captures], axis=1)
    order = [int(np.linalg.norm(truth - row, axis=1).argmin()) for row in values]
    # Equal tokens at equal places, such as the second of two samples, may be mixed up.
    assert_near(values, truth[order])
    assert len({row.tobytes() for row in truth}) <= len(set(order))


def check_specforge(family, folder):
    assert export_main(family.path, "--to", "specforge", "--out", folder / "specforge",
                       "--capture", ",".join(family.hidden)) == 0
    for sample in range(len(family.offsets) - 1):
        record = read_torch_file(folder / f"specforge/rows_0-2000/data_{sample}.ckpt")
        states = np.split(as_f32(record["aux_hidden_state"][0]), len(family.hidden), axis=1)
        family.check(sample, dict(enumerate(states)), record["hidden_state"][0], family.post_norm)


def check_speculators_export(family, folder):
    assert export_main(family.path, "--to", "speculators", "--out", folder / "speculators",
                       "--capture", ",".join(family.hidden)) == 0
    for sample in range(len(family.offsets) - 1):
        states, _ = read_hidden_states(folder / "speculators", sample)
        family.check(sample, {i: states[:, i] for i in range(len(family.hidden))}, states[:, -1],
                     family.pre_norm)


def check_shards(family, folder):
    assert export_main(family.path, "--to", "safetensors", "--out", folder / "shards") == 0
    tensors = read_safetensors(folder / "shards/shard-00000.safetensors")
    for sample in range(len(family.offsets) - 1):
        rows = slice(*tensors["offsets"][sample : sample + 2])
        family.check(sample, {i: tensors[name][rows] for i, name in enumerate(family.hidden)},
                     tensors["final.pre_norm"][rows], family.pre_norm)
        assert_near(tensors["final.post_norm"][rows], family.post_norm[family.rows(sample)])
