"""Captures with parameters, from the command line to zarr-python: the right rows and the right values.

The whole capture of another job is the reference; fp8 and rounding are worked out here with numpy alone.
"""

import json

import numpy as np
import zarr

from support import GOLDEN, bf16_to_f32, part_folders, read_safetensors, write_tokens

USAGE = 2
MODEL = GOLDEN / "llama/model"
E4M3_CODES = np.arange(0x7F, dtype=np.uint8)  # finite and not negative, in rising order


def e4m3_value(codes):
    """float8_e4m3fn as float64, from the definition: 4 bits of exponent, bias 7, 3 of mantissa."""
    codes = codes.astype(np.int64)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return np.where(codes & 0x80, -value, value)


def to_e4m3(values):
    """Nearest code for each float32 of a magnitude up to 448, halves to the even code."""
    values = values.astype(np.float32)
    table = e4m3_value(E4M3_CODES)
    distance = np.abs(np.abs(values).astype(np.float64)[..., None] - table)
    nearest = np.where(distance.min(-1, keepdims=True) == distance, E4M3_CODES % 2, 9).argmin(-1)
    return (nearest | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)


def round_bf16(bits, keep):
    """bf16 bits with the mantissa rounded to `keep` bits, halves to even, by comparing neighbours."""
    drop = 7 - keep
    magnitude = (bits & 0x7FFF).astype(np.int64)
    below = magnitude >> drop << drop
    above = below + (1 << drop)
    middle = 2 * magnitude - below - above
    up = (middle > 0) | ((middle == 0) & ((below >> drop) & 1 == 1))
    return (np.where(up, above, below) | (bits & 0x8000)).astype(np.uint16)


def tokens_with_mask(path):
    golden = read_safetensors(GOLDEN / "llama/tokens.safetensors")
    samples = [list(map(int, golden["input_ids"][b:e]))
               for b, e in zip(golden["offsets"], golden["offsets"][1:])]
    mask = [int(position % 5 in (2, 3)) for sample in samples for position in range(len(sample))]
    return write_tokens(path, samples, mask), samples, np.array(mask)


def raw_arrays(store, name):
    """Every part's array as it is stored, and the tokens of each part before it."""
    return [zarr.open_array(str(folder / name), mode="r") for folder in part_folders(store)]


def joined(store, name):
    return np.concatenate([array[...] for array in raw_arrays(store, name)])


def rows_in_job(store, name):
    """Rows that an array keeps, counted over all parts."""
    rows, before = [], 0
    for folder, array in zip(part_folders(store), raw_arrays(store, name)):
        rows += [before + row for row in zarr.open_array(str(folder / array.attrs["rows"]), mode="r")[...]]
        before += zarr.open_group(str(folder), mode="r").attrs["tokens"]
    return np.array(rows, np.int64)


def test_kept_rows_and_lossy_values_are_those_of_the_whole_capture(librarian, tmp_path):
    tokens, samples, mask = tokens_with_mask(tmp_path / "tokens.safetensors")
    job = ("extract", MODEL, "--tokens", tokens, "--dtype", "bf16", "--part-tokens", 24)
    librarian(*job, "--out", tmp_path / "whole", "--capture", "resid_post@all,embed,final.post_norm")
    kept = tmp_path / "kept"
    librarian(*job, "--out", kept, "--capture",
              "resid_post@0(positions=loss),resid_post@1(dtype=fp8_e4m3,positions=loss)",
              "--capture", "final.pre_norm(keep_mantissa_bits=3),embed(positions=last)",
              "--capture", "final.post_norm(positions=1..2)")
    librarian("verify", kept)

    masked = np.flatnonzero(mask)
    starts = np.cumsum([0] + [len(sample) for sample in samples])
    wanted = {"blocks.0.resid_post": masked, "embed": starts[1:] - 1,
              "final.post_norm": [start + k for start, sample in zip(starts, samples)
                                  for k in (1, 2) if k < len(sample)]}
    for name, rows in wanted.items():
        np.testing.assert_array_equal(rows_in_job(kept, name), rows, name)
        np.testing.assert_array_equal(joined(kept, name), joined(tmp_path / "whole", name)[rows], name)

    values = bf16_to_f32(joined(tmp_path / "whole", "blocks.1.resid_post")[masked])
    scales = (np.abs(values).max(1) / np.float32(448)).astype(np.float32)
    np.testing.assert_array_equal(joined(kept, "blocks.1.resid_post.scales"), scales)
    codes = joined(kept, "blocks.1.resid_post")
    np.testing.assert_array_equal(codes, to_e4m3(values / scales[:, None]))
    # And it is what it is for: close to the values.
    error = np.abs(e4m3_value(codes) * scales[:, None] - values)
    assert (error <= np.maximum(np.abs(values) / 16 * 1.001, scales[:, None] * 2.0**-10)).all()

    np.testing.assert_array_equal(joined(kept, "blocks.2.resid_post"),
                                  round_bf16(joined(tmp_path / "whole", "blocks.2.resid_post"), 3))


def test_one_tensor_asked_for_in_two_ways_is_refused_by_both_names(librarian, tmp_path):
    tokens, _, _ = tokens_with_mask(tmp_path / "tokens.safetensors")
    done = librarian("extract", MODEL, "--tokens", tokens, "--out", tmp_path / "out", "--capture",
                     "resid_post@0(positions=loss),resid_pre@1", exit_code=USAGE)
    assert "resid_post@0(positions=loss)" in done.stderr and "resid_pre@1" in done.stderr
    assert not (tmp_path / "out").exists()


def test_plan_says_the_rows_and_bytes_of_each_capture(librarian, tmp_path):
    """The sizes are those of the store: rows exactly, raw bytes exactly."""
    tokens, _, _ = tokens_with_mask(tmp_path / "tokens.safetensors")
    capture = "resid_post@0(positions=loss),final.pre_norm(dtype=fp8_e4m3),embed(positions=last)"
    plan = json.loads(librarian("plan", MODEL, "--tokens", tokens, "--capture", capture,
                                "--json").stdout.splitlines()[-1])
    librarian("extract", MODEL, "--tokens", tokens, "--out", tmp_path / "out", "--capture", capture)
    planned = {array["array"]: (array["rows"], array["dtype"], array["raw_bytes"])
               for entry in plan["captures"] for array in entry["stored"]}
    inspected = json.loads(librarian("inspect", tmp_path / "out", "--json").stdout)
    assert planned == {array["name"]: (array["shape"][0], array["dtype"], array["raw_bytes"])
                       for array in inspected["arrays"] if not array["name"].startswith("tokens/")}
    assert plan["disk"]["raw_bytes"] == sum(raw for _, _, raw in planned.values())
    assert {entry["name"]: entry["options"] for entry in plan["captures"]} == {
        "embed": "(positions=last)", "blocks.0.resid_post": "(positions=loss)",
        "final.pre_norm": "(dtype=fp8_e4m3)"}


def test_inspect_shows_values_with_their_positions(librarian, tmp_path):
    tokens, samples, mask = tokens_with_mask(tmp_path / "tokens.safetensors")
    out, raw = tmp_path / "out", tmp_path / "values.npy"
    librarian("extract", MODEL, "--tokens", tokens, "--out", out, "--capture",
              "resid_post@0(dtype=fp8_e4m3,positions=loss)")
    shown = json.loads(librarian("inspect", out, "--capture", "blocks.0.resid_post", "--sample", 1,
                                 "--raw", raw, "--json").stdout)
    first = len(samples[0])
    positions = list(np.flatnonzero(mask[first : first + len(samples[1])]))
    assert shown["positions"] == positions
    rows = rows_in_job(out, "blocks.0.resid_post")
    here = np.isin(rows, first + np.array(positions))
    values = (e4m3_value(joined(out, "blocks.0.resid_post")[here])
              * joined(out, "blocks.0.resid_post.scales")[here][:, None]).astype(np.float32)
    np.testing.assert_array_equal(np.load(raw), values)
