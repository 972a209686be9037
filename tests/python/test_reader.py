"""nexus_librarian without torch: samples, damage, stores that grow, and the order of a stream."""

import json
import pathlib
import pickle
import shutil

import numpy
import pytest
import zarr

from test_store_readers import bits, cases, fixture_root, raw_rows  # noqa: F401  (fixtures)

xxhash = pytest.importorskip("xxhash")
nexus_librarian = pytest.importorskip("nexus_librarian")
from nexus_librarian import (ActivationDataset, ActivationStore, ActivationStream,  # noqa: E402
                             DamagedStoreError, LaterFormatError, NotInStoreError, StoreError,
                             _plan, collate_packed, collate_padded)

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "activation_store/golden_store"
KINDS = GOLDEN.with_name("golden_store_kinds")
CAPTURE = "blocks.1.resid_post"


@pytest.fixture
def store_copy(tmp_path):
    """A copy of the golden store: 8 samples in 3 parts."""
    return pathlib.Path(shutil.copytree(GOLDEN, tmp_path / "store"))


def open_store(*paths):
    return ActivationStore(list(paths), framework="numpy")


def same(one, other):
    """Equal names, and equal bits of every array."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    one, other = numpy.asarray(one), numpy.asarray(other)
    return (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes())


def reseal(path, change):
    """Change a sealed JSON document and seal it anew."""
    document = json.loads(path.read_text())
    change(document)
    document.get("attributes", document)["xxh3"] = "0" * 32
    text = json.dumps(document)
    path.write_text(text.replace('"' + "0" * 32 + '"', f'"{xxhash.xxh3_128_hexdigest(text.encode())}"'))


def test_every_sample_is_what_was_written(fixture_root, cases):
    """Goal: captures, aliases, ids, mask and origin of each sample of a store of several parts.

    Method: against the raw rows that the C++ writer was given, as bits.
    """
    store = open_store(fixture_root / "store")
    assert set(store.captures) >= {"blocks.0.resid_post", "blocks.1.resid_post",
                                   "blocks.1.resid_pre"}
    assert list(store.lengths) == cases["sample_lengths"] and len(store) == store.samples == 8
    assert store.complete
    for part in cases["parts"]:
        rows = {array["array"].split("/")[-1]: raw_rows(fixture_root, array)
                for array in part["arrays"]}
        begin = 0
        for sample in range(part["first_sample"], part["first_sample"] + part["samples"]):
            end = begin + cases["sample_lengths"][sample]
            got = store.sample(sample)
            for name, array in [("blocks.0.resid_post",) * 2, ("blocks.1.resid_post",) * 2,
                                ("blocks.1.resid_pre", "blocks.0.resid_post")]:
                assert numpy.array_equal(bits(got[name]), bits(rows[array][begin:end])), name
            length = end - begin
            assert list(got["input_ids"]) == [(sample * 1009 + k * 17) % 32000
                                              for k in range(length)]
            assert list(got["loss_mask"]) == [False] + [True] * (length - 1)
            assert store.origin(sample)[1:] == (int(part["part"][-5:]), sample, sample)
            begin = end
    assert same(store.sample(-1), store.sample(7))
    assert list(store.sample(3, [])) == ["input_ids", "loss_mask"]
    with pytest.raises(IndexError, match="no sample 8; there are 8"):
        store.sample(8)
    with pytest.raises(NotInStoreError, match="no capture 'absent'; it has blocks.0.resid_post"):
        store.sample(0, ["absent"])


def test_several_stores_follow_each_other(store_copy):
    store = open_store(GOLDEN, store_copy)
    assert len(store) == 16 and same(store.sample(3), store.sample(11))
    assert store.origin(11).path == str(store_copy) and store.origin(11).sample == 3


def test_opening_reads_no_part(store_copy):
    """Goal: opening takes no longer for a store of very many shards.

    Method: what was not read cannot be found damaged.
    """
    for path in store_copy.glob("part-*/zarr.json"):
        path.write_text("{}")
    store = open_store(store_copy)
    assert len(store) == 8
    with pytest.raises(DamagedStoreError, match="part-00000/zarr.json"):
        store.sample(3)


@pytest.mark.parametrize("file, damage", [
    ("part-00001/blocks.1.resid_post/c/0/0", "flip"), ("part-00001/blocks.1.resid_post/c/0/0", "cut"),
    ("part-00001/blocks.1.resid_post/c/0/0", "remove"),
    ("part-00001/blocks.1.resid_post/zarr.json", "flip"), ("part-00001/zarr.json", "flip"),
    ("part-00001/tokens/offsets/c/0", "flip"), ("part-00001/tokens/input_ids/c/0", "cut"),
    ("part-00001/tokens/loss_mask/c/0", "remove"), ("job.json", "flip")])
def test_damage_names_the_file_and_nothing_else_suffers(store_copy, file, damage):
    """Goal: a trainer never gets wrong or fill values, and learns which file to look at."""
    path = store_copy / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 3] ^= 0x10
    path.write_bytes(content[:-1] if damage == "cut" else content)
    if damage == "remove":
        path.unlink()
    with pytest.raises(DamagedStoreError) as error:
        open_store(store_copy).sample(3)
    # A shard that is gone is found by its array's name, by whichever check comes first.
    assert file in str(error.value) or str(error.value).startswith(str(path.parent.parent))
    if file != "job.json":
        assert same(open_store(store_copy).sample(0), open_store(GOLDEN).sample(0))


def test_stores_that_cannot_be_read_are_told_apart(store_copy, tmp_path):
    with pytest.raises(NotInStoreError, match="nothing: not an activation store"):
        open_store(tmp_path / "nothing")
    reseal(store_copy / "part-00000/zarr.json",
           lambda document: document["attributes"].update(librarian_part=2))
    with pytest.raises(LaterFormatError, match="version 2"):
        open_store(store_copy).sample(0)
    pickled = pickle.dumps(open_store(store_copy))
    reseal(store_copy / "job.json", lambda document: document.update(identity_digest="0f" * 32))
    with pytest.raises(StoreError, match="another store lies there now"):
        pickle.loads(pickled)
    reseal(store_copy / "job.json", lambda document: document.update(librarian_job=7))
    with pytest.raises(LaterFormatError, match="job.json: written in version 7"):
        open_store(store_copy)


def test_parts_that_appear_are_appended(store_copy):
    """Goal: numbers of samples stay while a job completes its parts in any order."""
    hidden = store_copy / "part-00001/zarr.json"
    content = hidden.read_bytes()
    hidden.unlink()
    store, whole = open_store(store_copy), open_store(GOLDEN)
    assert len(store) == 5 and not store.complete and len(store.lengths) == 5
    assert same(store.sample(3), whole.sample(6))
    with pytest.raises(IndexError, match="in the parts that are complete"):
        store.sample(5)
    hidden.write_bytes(content)
    copy = pickle.loads(pickle.dumps(store))
    assert store.refresh() == 3 and store.refresh() == 0 and store.complete
    assert [store.origin(i).sample for i in range(8)] == [0, 1, 2, 6, 7, 3, 4, 5]
    assert list(store.lengths) == [whole.lengths[i] for i in [0, 1, 2, 6, 7, 3, 4, 5]]
    assert len(copy) == 5 and same(copy.sample(3), whole.sample(6))


def test_reading_while_extraction_runs(ragged_job, librarian, start, memory_path):
    """Goal: a trainer beside a running job sees complete parts with their true values, only.

    Method: read everything there is, again and again until the job ends; then compare all that was
    ever seen with the finished store.
    """
    directory, seen = memory_path / "store", {}
    program = start(*ragged_job.extract(ragged_job.original / "model", directory, threads=1,
                                        part_tokens=40))
    assert program.wait_for("part_done"), program.stderr
    store = open_store(directory)
    assert len(store) > 0
    while not store.complete:
        assert program.process.poll() in (None, 0), program.stderr
        store.refresh()
        for sample in range(len(store)):
            if sample not in seen:
                seen[sample] = (store.origin(sample).sample, store.sample(sample))
    assert program.end() == 0
    finished = open_store(directory)
    assert len(finished) == len(ragged_job.SAMPLE_LENGTHS)
    for number, sample in seen.values():
        assert same(sample, finished.sample(number))


def test_collators_join_samples():
    store = open_store(GOLDEN)
    samples = [store.sample(i, [CAPTURE]) for i in (0, 2, 3)]
    lengths = [5, 1, 12]
    padded = collate_padded(samples, pad_id=9)
    assert padded[CAPTURE].shape == (3, 12, 40)
    packed = collate_packed(samples)
    for row, (sample, length) in enumerate(zip(samples, lengths)):
        assert same(padded[CAPTURE][row, :length].copy(), sample[CAPTURE])
        assert not numpy.asarray(padded[CAPTURE][row, length:].copy()).view(numpy.uint8).any()
        assert list(padded["input_ids"][row]) == list(sample["input_ids"]) + [9] * (12 - length)
        assert list(padded["attention_mask"][row]) == [True] * length + [False] * (12 - length)
        begin = sum(lengths[:row])
        assert same(packed[CAPTURE][begin : begin + length].copy(), sample[CAPTURE])
        assert list(packed["position_ids"][begin : begin + length]) == list(range(length))
    assert list(packed["document_ids"]) == [0] * 5 + [1] + [2] * 12
    assert list(packed["cu_seqlens"]) == [0, 5, 6, 18] and packed["max_seqlen"] == 12
    assert padded["loss_mask"].dtype == bool and not padded["loss_mask"][1, 1:].any()


def test_streams_read_batches_as_the_collators_join_them():
    """Goal: decoding rows straight into a batch gives what collating samples gives."""
    store = open_store(GOLDEN)
    dataset = ActivationDataset(store)
    for options, collate in [({"batch_size": 3}, collate_padded),
                             ({"tokens_per_batch": 14, "packed": True}, collate_packed)]:
        at = 0
        for batch in ActivationStream(store, shuffle=False, **options):
            samples = [dataset[at + i] for i in range(len(batch["lengths"]))]
            assert same(batch, collate(samples))
            at += len(samples)
        assert at == 8


def test_batches_of_a_dataset_are_its_samples_and_join_without_a_copy():
    """Goal: what DataLoader asks for at once is what it would get one by one, and packing it copies
    no rows; samples that somebody changed or took out are joined as they are now."""
    dataset = ActivationDataset(open_store(KINDS))
    order = [2, 0, -1, 0]
    alone = [dataset[i] for i in order]
    together = dataset.__getitems__(order)
    assert all(same(one, other) for one, other in zip(together, alone))
    packed = collate_packed(together)
    assert same(packed, collate_packed(alone)) and same(collate_padded(together),
                                                        collate_padded(alone))
    for capture in ("embed", "blocks.2.resid_post"):
        assert all(numpy.shares_memory(packed[capture], sample[capture]) for sample in together
                   if sample[capture].size)
    assert same(collate_packed(together[:2]), collate_packed(alone[:2]))
    assert same(collate_packed(together[::-1]), collate_packed(alone[::-1]))
    for sample in (*together[1:], *alone[1:]):
        for capture in ("embed", "blocks.2.resid_post"):
            sample[capture] = numpy.zeros_like(sample[capture])
    assert same(collate_packed(together), collate_packed(alone))
    pickled = pickle.loads(pickle.dumps(together))
    assert all(type(sample) is dict for sample in pickled) and same(pickled[0], alone[0])
    with pytest.raises(IndexError):
        dataset.__getitems__([0, 1000])
    changed = ActivationDataset(dataset.store, transform=lambda sample: len(sample["input_ids"]))
    assert changed.__getitems__(order) == [len(sample["input_ids"]) for sample in alone]

    class Reversed(ActivationDataset):
        def __getitem__(self, index):
            return super().__getitem__(len(self) - 1 - index)

    assert same(Reversed(dataset.store).__getitems__([0])[0], dataset[-1])


def stored(part, array):
    """An array of the kinds store as zarr-python reads it."""
    return zarr.open_array(str(KINDS / f"part-{part:05d}" / array), mode="r")[...]


def test_kept_rows_groups_and_fp8_are_what_is_stored():
    """Goal: rows that are kept, with their positions; groups as dicts; fp8 as value times scale.

    Method: against zarr-python's view of the golden store of every kind, and ml_dtypes' fp8.
    """
    ml_dtypes = pytest.importorskip("ml_dtypes")
    store, kept_some = open_store(KINDS), 0
    for number in range(len(store)):
        part, place = store.locate(number)
        offsets = stored(part.part, "tokens/offsets")
        begin, end = offsets[place], offsets[place + 1]
        sample = store.sample(number)
        for capture in store.captures:
            rows = sample.get(capture + ".rows")
            if rows is not None:
                kept_some += 0 < len(rows) < end - begin
        scaled, raw = sample["blocks.2.resid_post"], store.sample(number, ["blocks.2.resid_post"],
                                                                  raw=True)
        kept = stored(part.part, "tokens/rows_loss")
        inside = (kept >= begin) & (kept < end)
        assert list(sample["blocks.2.resid_post.rows"]) == list(kept[inside] - begin)
        values = stored(part.part, "blocks.2.resid_post")[inside]
        scales = stored(part.part, "blocks.2.resid_post.scales")[inside]
        assert same(raw["blocks.2.resid_post"], values)
        assert same(raw["blocks.2.resid_post.scales"], scales)
        want = values.view(ml_dtypes.float8_e4m3fn).astype(numpy.float32) * scales[:, None]
        want = want.astype(ml_dtypes.bfloat16)
        assert numpy.array_equal(numpy.asarray(scaled.view(ml_dtypes.bfloat16), numpy.float32),
                                 numpy.asarray(want, numpy.float32), equal_nan=True)
        inside = stored(part.part, "tokens/rows_loss_next")
        inside = (inside >= begin) & (inside < end)
        assert list(sample["logits.topk"]) == ["gold_log_prob", "ids", "log_prob", "logsumexp"]
        for member, got in sample["logits.topk"].items():
            assert same(got, stored(part.part, f"logits.topk.{member}")[inside])
    assert kept_some >= 4
    assert store.capture_info("blocks.3.resid_post")[""].lossy == {"keep_mantissa_bits": 5}


def test_batches_of_kept_rows_say_where_rows_belong():
    """Goal: `<capture>.rows` of a batch leads to the right tokens, collated or read in place."""
    store, capture = open_store(KINDS), "blocks.2.resid_post"
    dataset = ActivationDataset(store, [capture, "embed", "logits.topk"])
    samples = [dataset[i] for i in range(len(dataset))]
    (packed,) = ActivationStream(store, dataset.captures, shuffle=False, packed=True,
                                 tokens_per_batch=1000)
    (padded,) = ActivationStream(store, dataset.captures, shuffle=False, batch_size=1000)
    assert same(packed, collate_packed(samples)) and same(padded, collate_padded(samples))
    assert packed["loss_mask"][packed[capture + ".rows"]].all()
    assert len(packed[capture]) == packed["loss_mask"].sum() == (padded[capture + ".rows"] >= 0).sum()
    assert padded["logits.topk"]["ids"].shape[:2] == padded["logits.topk.rows"].shape


def test_token_batches_take_the_rows_that_are_kept():
    store, capture = open_store(KINDS), "blocks.2.resid_post"
    batches = list(ActivationStream(store, [capture], tokens_per_batch=7, seed=2))
    ids = sorted(i for batch in batches for i in batch["input_ids"])
    samples = [store.sample(i) for i in range(len(store))]
    assert ids == sorted(i for sample in samples for i in sample["input_ids"][sample["loss_mask"]])
    row_of = {i: row.tobytes() for sample in samples for i, row in
              zip(sample["input_ids"][sample[capture + ".rows"]], sample[capture])}
    for batch in batches:
        for i, row in zip(batch["input_ids"], batch[capture]):
            assert row.tobytes() == row_of[i]
    with pytest.raises(ValueError, match="keep the same rows; these keep rows_loss, rows_loss_next"):
        next(iter(ActivationStream(store, [capture, "logits.topk"], tokens_per_batch=7)))


def test_the_order_of_an_epoch_does_not_change():
    """Goal: a state saved with this version means the same order with every other, of numpy too.

    Method: the order itself, written down.
    """
    block = numpy.repeat(numpy.arange(6), 3)
    order = _plan.shuffled_samples(block, numpy.full(18, 10), 60, seed=5, epoch=2)
    assert sorted(order) == list(range(18))
    assert list(order) == [9, 17, 11, 16, 10, 15, 5, 7, 8, 6, 4, 3, 0, 1, 2, 12, 13, 14]
    windows = [set(block[order[at : at + 6]]) for at in range(0, 18, 6)]
    assert [len(window) for window in windows] == [2, 2, 2], "a window mixes its blocks, and only them"
    assert list(_plan.greedy_batches(numpy.array([3, 3, 9, 1, 1]), 6)) == [0, 2, 3, 5]
    assert list(_plan.interleaved(7, 2, 2)) == [0, 2, 1, 3, 4, 6, 5]
