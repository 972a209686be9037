"""The adapters without any trainer: what their batches hold, and continuing in the middle.

Stores come from the built program on the golden llama; test_trainers.py in ../python runs the trainers.
"""

import itertools
import json
import os
import pathlib
import pickle
import random
import subprocess

import pytest
import torch
from torch.utils.data import DataLoader

from nexus_librarian import ActivationStore, NotInStoreError
from nexus_librarian.adapters import SpeculatorsDataset, sae_lens_batches

TESTS = pathlib.Path(__file__).resolve().parents[1]
BUILD = pathlib.Path(os.environ.get("LIBRARIAN_BUILD_DIR", TESTS.parent / "build/release"))
BINARY = pathlib.Path(os.environ.get("LIBRARIAN_BIN", BUILD / "cli/librarian"))
SAMPLE_LENGTHS = [9, 30, 17, 24, 5, 28, 12, 20, 1, 33]
HIDDEN = ["blocks.0.resid_post", "blocks.1.resid_post"]
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def extract(folder, captures, *, masks=True):
    """A store of several parts in `folder`; returns its path."""
    if not BINARY.is_file():
        pytest.skip(f"{BINARY} is not built")
    draw = random.Random(5)
    rows = [{"input_ids": [draw.randrange(3, 40) for _ in range(length)],
             **({"loss_mask": [int(at >= length // 3) for at in range(length)]} if masks else {})}
            for length in SAMPLE_LENGTHS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    subprocess.run([BINARY, "extract", TESTS / "golden/llama/model", "--tokens", folder / "rows.jsonl",
                    "--out", folder / "store", "--part-tokens", "64", "--capture", captures],
                   check=True, capture_output=True)
    return folder / "store"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return extract(tmp_path_factory.mktemp("adapters"), "resid_post@[0,1],final.pre_norm")


def test_an_item_is_the_layers_side_by_side_and_the_state_before_the_norm(path):
    dataset, store = SpeculatorsDataset(path), ActivationStore(path)
    assert dataset.hidden == HIDDEN and dataset.layer_ids == [1, 2] and dataset.hidden_size == 64
    assert dataset.approx_lengths == SAMPLE_LENGTHS
    for index in range(len(dataset)):
        item, sample = dataset[index], store.sample(index)
        assert torch.equal(item["hidden_states"], torch.cat([sample[name] for name in HIDDEN], dim=1))
        assert torch.equal(item["verifier_last_hidden_states"], sample["final.pre_norm"])
        assert torch.equal(item["input_ids"], sample["input_ids"])
        assert torch.equal(item["loss_mask"], sample["loss_mask"])
        assert item["lengths"].tolist() == [SAMPLE_LENGTHS[index]]
        assert item["position_ids"].tolist() == list(range(SAMPLE_LENGTHS[index]))
        assert item["hidden_states"].dtype == torch.bfloat16


def test_the_order_of_layers_is_the_callers(path):
    turned, plain = SpeculatorsDataset(path, HIDDEN[::-1]), SpeculatorsDataset(path)
    assert turned.layer_ids == [2, 1]
    assert torch.equal(turned[1]["hidden_states"][:, :64], plain[1]["hidden_states"][:, 64:])


def test_the_last_block_is_the_final_state_by_its_other_name(tmp_path):
    """Goal: a store of all layers needs no final.pre_norm, and its last layer is no input layer."""
    dataset = SpeculatorsDataset(extract(tmp_path, "resid_post@all"))
    assert dataset.hidden == HIDDEN
    last = ActivationStore(tmp_path / "store").sample(3)["blocks.2.resid_post"]
    assert torch.equal(dataset[3]["verifier_last_hidden_states"], last)


def test_max_len_cuts_every_tensor_and_a_store_without_mask_counts_every_token(tmp_path):
    dataset = SpeculatorsDataset(extract(tmp_path, "resid_post@all", masks=False), max_len=10)
    assert dataset.approx_lengths == [min(length, 10) for length in SAMPLE_LENGTHS]
    item = dataset[1]
    assert {name: len(value) for name, value in item.items()} == {
        "hidden_states": 10, "input_ids": 10, "verifier_last_hidden_states": 10, "loss_mask": 10,
        "lengths": 1, "position_ids": 10}
    assert item["lengths"].tolist() == [10] and bool(item["loss_mask"].all())


def test_a_split_has_every_sample_once(path):
    whole = SpeculatorsDataset(path, max_len=8)
    train, val = whole.split(0.75)
    assert (len(train), len(val)) == (7, 3)
    assert train.approx_lengths + val.approx_lengths == whole.approx_lengths
    assert torch.equal(val[0]["hidden_states"], whole[7]["hidden_states"])
    assert torch.equal(pickle.loads(pickle.dumps(val))[2]["input_ids"], whole[9]["input_ids"])
    with pytest.raises(ValueError, match="one side empty"):
        whole.split(1.0)


def test_samples_with_nan_raise_or_are_none(path, monkeypatch):
    """speculators' collator counts and drops None."""
    read = ActivationStore.sample

    def with_nan(self, sample, captures=None, **options):
        values = read(self, sample, captures, **options)
        if sample == 2:
            values["final.pre_norm"][3, 5] = float("nan")
        return values

    monkeypatch.setattr(ActivationStore, "sample", with_nan)
    with pytest.raises(ValueError, match="sample 2"):
        SpeculatorsDataset(path)[2]
    dropping = SpeculatorsDataset(path, nonfinite="drop")
    assert dropping[2] is None and dropping[3] is not None


def test_a_store_without_the_state_before_the_norm_is_refused(tmp_path):
    with pytest.raises(NotInStoreError, match="--capture final.pre_norm"):
        SpeculatorsDataset(extract(tmp_path, "resid_post@[0,1],final.post_norm"))


def sae(path, captures=HIDDEN[1], **options):
    return sae_lens_batches(path, captures, 16, seed=4, **options)


def test_an_epoch_of_rows_is_every_token_but_each_samples_first(path):
    """Goal: BOS left out, no row twice or missing within an epoch, values unscaled and as float32.

    Method: two epochs of a batch size that divides their rows.
    """
    store = ActivationStore(path)
    rows = torch.cat([store.sample(i)[HIDDEN[1]][1:] for i in range(len(store))]).float()
    size = next(n for n in (13, 9, 7, 5, 3, 1) if len(rows) % n == 0)
    batches = sae_lens_batches(path, HIDDEN[1], size, seed=4)
    orders = []
    for _ in range(2):
        epoch = torch.cat([next(batches) for _ in range(len(rows) // size)])
        assert epoch.dtype == torch.float32
        assert sorted(map(tuple, epoch.tolist())) == sorted(map(tuple, rows.tolist()))
        orders.append(epoch)
    assert not torch.equal(*orders)


def test_several_captures_give_the_same_tokens(path):
    store = ActivationStore(path)
    pairs = {tuple(torch.cat([store.sample(i)[name][row] for name in HIDDEN]).tolist())
             for i in range(len(store)) for row in range(SAMPLE_LENGTHS[i])}
    for batch in itertools.islice(sae(path, HIDDEN, dtype=None), 20):
        assert list(batch) == HIDDEN and batch[HIDDEN[0]].dtype == torch.bfloat16
        for row in torch.cat([batch[name] for name in HIDDEN], dim=1).tolist():
            assert tuple(row) in pairs


@pytest.mark.parametrize("workers_before,workers_after", [(0, 0), (2, 0), (0, 1), (2, 3)])
def test_batches_continue_where_they_were(path, workers_before, workers_after):
    """Goal: no batch lost or doubled over a restart, in the first epoch and in a later one."""
    for taken in (0, 4, 16):  # An epoch has 10 batches.
        whole = list(itertools.islice(sae(path), taken + 15))
        before = sae(path, num_workers=workers_before)
        seen = list(itertools.islice(before, taken))
        after = sae(path, num_workers=workers_after)
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        seen += list(itertools.islice(after, 15))
        assert all(map(torch.equal, whole, seen))


def test_fewer_rows_than_a_batch_are_an_error_and_no_endless_loop(path):
    with pytest.raises(ValueError, match="smaller batch_size"):
        next(sae_lens_batches(path, HIDDEN[0], 100_000))


def test_batches_stack_in_a_loader_of_speculators_kind(path):
    """Goal: items pass through worker processes."""
    dataset = SpeculatorsDataset(path)
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    assert all(torch.equal(item["hidden_states"], dataset[index]["hidden_states"])
               for index, item in enumerate(loader))
