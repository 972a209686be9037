"""The store as others see it: zarr-python and TensorStore read what store_fixture wrote, bit for bit."""

import json
import os
import pathlib
import shutil
import subprocess

import numpy
import pytest

tensorstore = pytest.importorskip("tensorstore")
zarr = pytest.importorskip("zarr")

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
STORED = {"bfloat16": numpy.uint16, "float16": numpy.float16, "float32": numpy.float32,
          "float8_e4m3fn": numpy.uint8, "int32": numpy.int32}
FILL = {"float8_e4m3fn": 0x7F, "int32": -1}  # NaN in the others
BITS = {1: numpy.uint8, 2: numpy.uint16, 4: numpy.uint32}


def with_zarr(directory):
    return zarr.open_array(str(directory), mode="r")[:]


def with_tensorstore(directory):
    # Without the option a missing shard would be NaNs, not an error.
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(directory)},
            "fill_missing_data_reads": False}
    return numpy.asarray(tensorstore.open(spec).result().read().result())


READERS = pytest.mark.parametrize("read", [with_zarr, with_tensorstore])


@pytest.fixture(scope="module")
def fixture_root(tmp_path_factory):
    """A directory with cases.json, written by the C++ tool."""
    build = pathlib.Path(os.environ.get("LIBRARIAN_BUILD_DIR", REPOSITORY / "build/release"))
    tool = build / "tests/activation_store/store_fixture"
    if not tool.is_file():
        if "LIBRARIAN_BUILD_DIR" in os.environ:
            pytest.fail(f"{tool} is not built")
        pytest.skip(f"{tool} is not built")
    root = tmp_path_factory.mktemp("store")
    subprocess.run([tool, root], check=True, timeout=120)
    return root


@pytest.fixture(scope="module")
def cases(fixture_root):
    return json.loads((fixture_root / "cases.json").read_text())


def bits(values):
    return numpy.ascontiguousarray(values).view(BITS[values.dtype.itemsize])


def raw_rows(root, case):
    stored = STORED[case["dtype"]]
    return numpy.fromfile(root / case["raw"], dtype=stored).reshape(case["shape"])


@READERS
def test_every_type_codec_and_shape_reads_bit_for_bit(fixture_root, cases, read):
    """Goal: the format is Zarr v3 to its two main readers, for every way we write it.

    Method: whole arrays, compared as bits, because many of the values are NaN.
    """
    assert len(cases["cases"]) > 100
    for case in cases["cases"]:
        want = raw_rows(fixture_root, case)
        got = read(fixture_root / case["array"])
        assert got.dtype == want.dtype and got.shape == want.shape, case["array"]
        assert numpy.array_equal(bits(got), bits(want)), case["array"]


def test_attributes_name_the_true_type(fixture_root, cases):
    """Goal: a reader learns from the file alone that uint16 is bfloat16."""
    for case in cases["cases"]:
        attributes = zarr.open_array(str(fixture_root / case["array"]), mode="r").attrs
        assert attributes["dtype"] == case["dtype"]
        assert attributes["capture"] == "blocks.0.resid_post"
        assert len(attributes["xxh3"]) == 32


@READERS
def test_a_whole_store_reads_as_groups_of_samples(fixture_root, cases, read):
    """Goal: tokens and captures of each part are there for a trainer, sample by sample."""
    store = fixture_root / "store"
    assert zarr.open_group(str(store), mode="r").attrs["librarian_store"] == 1
    lengths = cases["sample_lengths"]
    for part in cases["parts"]:
        directory = store / part["part"]
        group = zarr.open_group(str(directory), mode="r")
        assert group.attrs["tokens"] == part["tokens"]
        members = {name for name, _ in group.members()}
        assert members == {"tokens"} | {array["array"] for array in part["arrays"]}
        offsets = read(directory / "tokens/offsets")
        samples = range(part["first_sample"], part["first_sample"] + part["samples"])
        assert list(numpy.diff(offsets)) == [lengths[sample] for sample in samples]
        assert list(read(directory / "tokens/sample_index")) == list(samples)
        ids = read(directory / "tokens/input_ids")
        mask = read(directory / "tokens/loss_mask")
        assert (ids.dtype, mask.dtype) == (numpy.int32, numpy.uint8)
        for row, sample in enumerate(samples):
            begin, end = offsets[row], offsets[row + 1]
            want = [(sample * 1009 + k * 17) % 32000 for k in range(lengths[sample])]
            assert list(ids[begin:end]) == want
            assert list(mask[begin:end]) == [0] + [1] * (lengths[sample] - 1)
        for array in part["arrays"]:
            got = read(directory / array["array"])
            want = raw_rows(fixture_root, array)
            assert got.dtype == want.dtype and got.shape == want.shape, array["array"]
            assert numpy.array_equal(bits(got), bits(want)), array["array"]
        for name, rows in part["rows"].items():
            got = read(directory / "tokens" / name)
            assert got.dtype == numpy.int64 and list(got) == (rows or []), name


def test_attributes_say_which_rows_and_bits_are_kept(fixture_root, cases):
    """Goal: what a capture with parameters keeps can be told from zarr.json alone, also if it is nothing."""
    lossy, kept_rows, sizes = {}, {}, set()
    for part in cases["parts"]:
        directory = fixture_root / "store" / part["part"]
        group = zarr.open_group(str(directory), mode="r")
        members = group.attrs["groups"]["logits.topk"]
        assert members == {name: f"logits.topk.{name}"
                           for name in ("ids", "log_prob", "logsumexp", "gold_log_prob")}
        assert "logits.topk" in group.attrs["captures"]
        for array in part["arrays"]:
            opened = zarr.open_array(str(directory / array["array"]), mode="r")
            lossy[array["array"]] = opened.attrs["lossy"]
            kept_rows[array["array"]] = opened.attrs.get("rows", "")
            if array.get("rows"):
                rows = with_zarr(directory / array["rows"])
                assert len(rows) == opened.shape[0]
                sizes.add(len(rows))
    assert 0 in sizes and max(sizes) > 10  # else the case that matters is not there
    assert lossy == {"blocks.0.resid_post": None, "blocks.1.resid_post": None, "embed": None,
                     "blocks.2.resid_post": {"fp8": "e4m3fn", "scales": "blocks.2.resid_post.scales"},
                     "blocks.2.resid_post.scales": None,
                     "blocks.3.resid_post": {"keep_mantissa_bits": 5},
                     **{name: None for name in members.values()}}
    assert {name: rows for name, rows in kept_rows.items() if rows} == {
        "blocks.2.resid_post": "tokens/rows_loss", "blocks.2.resid_post.scales": "tokens/rows_loss",
        "embed": "tokens/rows_10_11", **{name: "tokens/rows_loss_next" for name in members.values()}}


def test_a_lost_shard_is_loud_in_foreign_readers(fixture_root, cases, tmp_path):
    """Goal: data that is not there can not be taken for data: NaN in one reader, an error in the other."""
    for dtype in STORED:
        case = next(case for case in cases["cases"]
                    if case["dtype"] == dtype and "chunk8-shard16" in case["array"]
                    and len(case["shape"]) == 2)
        array = tmp_path / dtype
        shutil.copytree(fixture_root / case["array"], array)
        shutil.rmtree(array / "c/1")
        got = with_zarr(array)
        if dtype in FILL:
            assert (got[16:32] == FILL[dtype]).all() and not (got[:16] == FILL[dtype]).all()
        else:
            as_float = (got.astype(numpy.uint32) << 16).view(numpy.float32) if dtype == "bfloat16" else got
            assert numpy.isnan(as_float[16:32]).all() and not numpy.isnan(as_float[:16]).any()
        with pytest.raises(ValueError, match="NOT_FOUND"):
            with_tensorstore(array)


@READERS
def test_a_flipped_bit_is_an_error_in_foreign_readers(fixture_root, cases, read, tmp_path):
    """Goal: the CRC32C in each chunk and index is one that other readers check."""
    for number, case in enumerate(cases["cases"][::7]):
        array = tmp_path / str(number)
        shutil.copytree(fixture_root / case["array"], array)
        shard = array / ("c/0/0" if len(case["shape"]) == 2 else "c/0")
        content = bytearray(shard.read_bytes())
        content[len(content) // 3] ^= 0x10
        shard.write_bytes(content)
        with pytest.raises(Exception, match="(?i)checksum|digest mismatch"):
            read(array)
