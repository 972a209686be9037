#!/usr/bin/env python3
"""The same bytes whatever happens, and memory as promised, with Python's standard library alone.

    tests/gpu/stores.py --librarian build/cuda/cli/librarian [--device cuda:0] [--hidden 2048]

A random Llama over ragged samples is extracted again and again: with other blocks; on a GPU also
with so little --device-memory that layers come in stages; killed (SIGKILL) after some layers and
resumed. Every store must have the first one's bytes, and `librarian verify` must find it whole. On
a GPU the driver's count of memory in use is watched all the while: no run may take more than its
--device-memory. Exit code 0: all as promised.
"""

import argparse
import ctypes
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from plain_files import differing_files, write_random_llama, write_tokens

MIB = 1 << 20
LAYERS, VOCAB = 4, 512
LENGTHS = [300, 1, 5, 700, 33, 1500, 64, 2, 900, 17, 2100, 1, 450, 80]
PART_TOKENS = 2500
RUN_SECONDS_MAX = 120
POLL_SECONDS = 0.002


class NvmlMemory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class GpuMemory:
    """Bytes of a GPU in use by anybody, as the driver's management library counts them."""

    def __init__(self, index):
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self._device = ctypes.c_void_p()
        if self._library.nvmlInit_v2() or self._library.nvmlDeviceGetHandleByIndex_v2(
                index, ctypes.byref(self._device)):
            raise OSError("NVML does not know the GPU")

    def used(self):
        memory = NvmlMemory()
        if self._library.nvmlDeviceGetMemoryInfo(self._device, ctypes.byref(memory)):
            raise OSError("NVML does not say how much memory is in use")
        return memory.used


class Peak:
    """The most that was in use inside a with statement, above what was in use before."""

    def __init__(self, gpu):
        self._gpu, self.bytes = gpu, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._before = self._gpu.used() if self._gpu else 0
        if self._gpu:
            self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        if self._gpu:
            self._thread.join()

    def _watch(self):
        while not self._stop.wait(POLL_SECONDS):
            self.bytes = max(self.bytes, self._gpu.used() - self._before)


class Checks:
    """Runs the job in all ways and keeps what went wrong."""

    def __init__(self, options, folder):
        self.librarian, self.device, self.folder = options.librarian, options.device, folder
        self.on_gpu = options.device.startswith("cuda")
        self.gpu = None
        self.figures, self.failures = [], []
        if self.on_gpu:
            try:
                self.gpu = GpuMemory(int(options.device.partition(":")[2] or 0))
            except OSError as error:
                self.fail(f"peak device memory cannot be measured: {error}")
        self.model, self.tokens = folder / "model", folder / "tokens.safetensors"
        self.expected = folder / "expected"
        write_random_llama(self.model, hidden=options.hidden, layers=LAYERS,
                           ffn=options.hidden * 4, heads=options.hidden // 64,
                           kv_heads=max(1, options.hidden // 256), vocab=VOCAB)
        write_tokens(self.tokens, LENGTHS, VOCAB)

    def fail(self, text):
        self.failures.append(text)
        print("FAILED", text, flush=True)

    def arguments(self, command, *more):
        return list(map(str, [
            self.librarian, command, self.model, "--tokens", self.tokens, "--device", self.device,
            "--capture", "resid_post@all,attn_out@1,final.post_norm", "--part-tokens", PART_TOKENS,
            "--chunk-tokens", 64, "--shard-tokens", 1024, "--save-state-every", "0", "--json",
            *more]))

    def plan(self, *more):
        """What `librarian plan` says, or None if it refuses."""
        done = subprocess.run(self.arguments("plan", *more), stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True, timeout=RUN_SECONDS_MAX)
        if done.returncode != 0:
            return None
        return next(event for event in map(json.loads, done.stdout.splitlines())
                    if event["event"] == "plan")

    def extract(self, store, *more, kill_after=None):
        """Run once; with `kill_after`, SIGKILL it when so many layers are durable.

        @return  (exit code, standard error)
        """
        with open(self.folder / "stderr", "w+") as errors:
            process = subprocess.Popen(self.arguments("extract", "--out", store, *more),
                                       stdout=subprocess.PIPE, stderr=errors, text=True)
            timer = threading.Timer(RUN_SECONDS_MAX, process.kill)
            timer.start()
            layers = 0
            for line in process.stdout:
                layers += line.startswith("{") and '"layer_done"' in line
                if layers == kill_after:
                    process.send_signal(signal.SIGKILL)
                    break
            process.stdout.read()
            code = process.wait()
            timer.cancel()
            process.stdout.close()
            errors.seek(0)
            return code, errors.read().strip()[-400:]

    def check(self, name, *more, kills=(), limit=None):
        """One way to run the job: `kills` are the numbers of layers after which it is killed."""
        store = self.folder / "store" if self.expected.exists() else self.expected
        if limit is not None:
            more += ("--device-memory", limit)
        begin, killed = time.monotonic(), 0
        with Peak(self.gpu) as peak:
            for kill_after in kills:
                killed += self.extract(store, *more, kill_after=kill_after)[0] == -signal.SIGKILL
            code, errors = self.extract(store, *more)
        figure = {"name": name, "seconds": round(time.monotonic() - begin, 2)}
        if self.gpu:
            figure |= {"peak_device_bytes": peak.bytes, "device_memory_bytes": limit}
        if kills:
            figure["killed"] = killed
        self.figures.append(figure)
        print(*(f"{key} {value}" for key, value in figure.items()), sep="  ", flush=True)
        if code != 0:
            self.fail(f"{name}: exit code {code}: {errors}")
        elif subprocess.run([self.librarian, "verify", store], stdout=subprocess.DEVNULL,
                            timeout=RUN_SECONDS_MAX).returncode != 0:
            self.fail(f"{name}: verify finds damage")
        elif store != self.expected and (names := differing_files(store, self.expected)):
            self.fail(f"{name}: {len(names)} files differ, e.g. {names[0]}")
        if len(kills) != killed:
            self.fail(f"{name}: of {len(kills)} kills {killed} came before the end")
        if limit is not None and peak.bytes > limit:
            self.fail(f"{name}: {peak.bytes} bytes of device memory in use, allowed {limit}")
        if store != self.expected:
            shutil.rmtree(store, ignore_errors=True)

    def least_memory(self):
        """The least --device-memory that a plan accepts, in MiB up to 16; None: no limit does."""
        low, high = 0, 4096
        if self.plan("--device-memory", high * MIB) is None:
            return None
        while high - low > 16:
            middle = (low + high) // 2
            if self.plan("--device-memory", middle * MIB) is None:
                low = middle
            else:
                high = middle
        return high

    def check_stages(self):
        least = self.least_memory()
        if least is None:
            self.fail("no --device-memory is enough for a plan")
            return
        # Weights that come in stages stay in the ring until their layer has run.
        resident = self.plan()["memory"]["ring_bytes"]
        staged = self.plan("--device-memory", least * MIB)["memory"]["ring_bytes"]
        if not staged > resident:
            self.fail(f"at {least} MiB of device memory layers still come whole")
        # A little more than the least: the driver's own share may vary from run to run.
        for more in (16, 80):
            limit = (least + more) * MIB
            self.check(f"{least + more} MiB of device memory", limit=limit)
        self.check("in stages, other blocks", "--block-tokens", 700, limit=(least + 80) * MIB)
        self.check("in stages, killed", kills=(2, 3), limit=(least + 80) * MIB)
        self.check("4 GiB of device memory", limit=4096 * MIB)

    def run(self):
        self.check("first run")
        self.check("again")
        for rows in (64, 700, 2048):
            self.check(f"blocks of {rows}", "--block-tokens", rows)
        self.check("state on disk", "--state", "disk")
        self.check("killed", kills=(2, 3))
        self.check("killed, other blocks", "--block-tokens", 900, kills=(1, 4))
        if self.on_gpu:
            self.check_stages()
        else:
            print(f"{self.device}: no --device-memory, so no stages and no peak to check")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--librarian", type=pathlib.Path, required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--hidden", type=int, default=2048, help="width, a multiple of 256")
    parser.add_argument("--out", type=pathlib.Path, help="figures, JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        checks = Checks(options, pathlib.Path(directory))
        checks.run()
    if options.out:
        options.out.write_text(json.dumps({"device": options.device, "runs": checks.figures,
                                           "failures": checks.failures}))
    print(f"{len(checks.failures)} failures in {len(checks.figures)} ways to run the job")
    return 1 if checks.failures else 0


if __name__ == "__main__":
    sys.exit(main())
