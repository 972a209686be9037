#!/usr/bin/env python3
"""Print shape and first values of every array in a Librarian store, read with zarr-python.

Goal: show that no reader of ours is needed. bf16 is stored as uint16 with the attribute
dtype = bfloat16; its bits are the upper half of a float32.

    show_activations.py DIR [--values 6]
"""

import argparse
import pathlib

import numpy as np
import zarr


def as_float32(array, values):
    """Stored values as float32; `array` is the zarr array they come from."""
    if array.attrs["dtype"] == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=pathlib.Path)
    parser.add_argument("--values", type=int, default=6, help="values of the last token to print")
    options = parser.parse_args()
    part_folders = sorted(p.parent for p in options.store.glob("part-*/zarr.json"))
    if not part_folders:
        parser.error(f"{options.store} has no complete part")
    for folder in part_folders:
        part = zarr.open_group(folder, mode="r")
        print(f"{folder.name}: {part.attrs['samples']} samples, {part.attrs['tokens']} tokens")
        for name, array in sorted(part.arrays()):
            values = as_float32(array, array[-1, : options.values])
            shown = " ".join(f"{value:8.4f}" for value in values)
            print(f"  {name:24s} {str(array.shape):14s} {array.attrs['dtype']:9s} {shown} ...")
        for name, target in sorted(part.attrs.get("aliases", {}).items()):
            print(f"  {name:24s} is {target}")


if __name__ == "__main__":
    main()
