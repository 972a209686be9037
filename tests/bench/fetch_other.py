#!/usr/bin/env python3
"""One reading of one object by another library, in a process of its own.

fetch_contenders.py starts it: fetch_other.py NAME URL. One JSON line says what the reading took,
without the imports.

    obstore   ranges of an HTTP object into memory: --connections of --request-mib at a time
    runai     run:ai model streamer: a safetensors file, local or s3://, tensor after tensor; settings
              come from its own environment variables
"""
import argparse
import concurrent.futures
import json
import pathlib
import resource
import time
import urllib.parse


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_kib():
    """Of this program alone; getrusage's figure begins with that of whoever started it."""
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def obstore(options):
    import numpy as np
    import obstore as library
    from obstore.store import HTTPStore
    url = urllib.parse.urlsplit(options.url)
    store = HTTPStore.from_url(f"{url.scheme}://{url.netloc}", client_options={"allow_http": True})
    path = url.path.lstrip("/")
    step = options.request_mib << 20
    size = library.head(store, path)["size"]
    place = np.full(size, 1, np.uint8)  # Its pages are there before the clock runs.

    def read(begin):
        part = library.get_range(store, path, start=begin, end=min(begin + step, size))
        place[begin:begin + step] = np.frombuffer(part, np.uint8)
        return len(part)

    def run():
        # Of its ways (asyncio, get_ranges, streams, threads) this took the least time and work.
        with concurrent.futures.ThreadPoolExecutor(options.connections) as pool:
            begins = [begin for _ in range(options.passes) for begin in range(0, size, step)]
            return sum(pool.map(read, begins))

    return run


def runai(options):
    from runai_model_streamer import SafetensorsStreamer

    def run():
        read_bytes = 0
        for _ in range(options.passes):
            with SafetensorsStreamer() as streamer:
                # Not owned: a tensor is done with before the next one comes, as in Librarian.
                streamer.stream_file(options.url, owned=False)
                read_bytes += sum(tensor.nbytes for _, tensor in streamer.get_tensors())
        return read_bytes

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("library", choices=["obstore", "runai"])
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--request-mib", type=int, default=8)
    parser.add_argument("--passes", type=int, default=1)
    options = parser.parse_args()
    run = {"obstore": obstore, "runai": runai}[options.library](options)
    cpu_begin, wall_begin = cpu_seconds(), time.perf_counter()
    read_bytes = run()
    print(json.dumps({"wall_s": time.perf_counter() - wall_begin,
                      "cpu_s": cpu_seconds() - cpu_begin, "bytes": read_bytes,
                      "peak_kib": peak_kib()}))


if __name__ == "__main__":
    main()
