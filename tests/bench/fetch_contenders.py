#!/usr/bin/env python3
"""The fetcher beside raw recv() and other download clients, taking turns on the same server.

    build/bench-venv/bin/python tests/bench/fetch_contenders.py [--rounds 5]
    build/bench-venv/bin/python tests/bench/fetch_contenders.py --paced [--rounds 3]

The first form measures a server without any limit, nginx over loopback with its file in memory, and
the same file read locally. --paced measures a store far away: 30 ms to the first byte, 40 MB/s a
connection, and the same with 3 % of the requests ten times slower. Each client runs in a process of
its own; wall time and CPU seconds are those of the reading alone where the client can tell (ours,
obstore, run:ai), else of the whole process (curl, aria2). Printed are medians over the rounds, and
for each bar of the fetcher whether it is met; a ratio is the median of the rounds' own ratios.

Needs nginx, curl and aria2c (Debian: nginx-light, curl, aria2) and tests/bench/requirements.txt.
"""
import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
HEADER_BYTES = 4096
TENSORS = 12
OBJECT = "bench/model.safetensors"  # For S3 a key in a bucket.


def write_object(path, mib):
    """A safetensors file of bf16 tensors whose bits bench_pattern.h knows."""
    end = (mib << 20) - HEADER_BYTES
    edges = [end * i // TENSORS // 16 * 16 for i in range(TENSORS)] + [end]
    header = json.dumps({
        f"layers.{i}": {"dtype": "BF16", "shape": [(edges[i + 1] - edges[i]) // 2],
                        "data_offsets": edges[i:i + 2]} for i in range(TENSORS)})
    with path.open("wb") as file:
        file.write((HEADER_BYTES - 8).to_bytes(8, "little"))
        file.write(header.encode().ljust(HEADER_BYTES - 8))
        for begin in range(HEADER_BYTES, mib << 20, 4 << 20):
            index = np.arange(begin // 8, min(begin + (4 << 20), mib << 20) // 8, dtype=np.uint64)
            word = index * np.uint64(0x9E3779B97F4A7C15)
            file.write((word ^ (word >> np.uint64(29))).tobytes())


@contextlib.contextmanager
def nginx(folder):
    """Serves `folder`/www. @return the URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = "".join(f"{kind}_temp_path {folder}/nginx; "
                        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
    (folder / "nginx.conf").write_text(
        # Without a master there is one process to end.
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr warn;\n"
        "events { worker_connections 512; }\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; "
        f"{temporary}\n server {{ listen 127.0.0.1:{port}; root {folder}/www; }} }}\n")
    server = subprocess.Popen(["nginx", "-p", folder, "-c", folder / "nginx.conf"])
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if server.poll() is not None:
                sys.exit("fetch_contenders.py: nginx did not start; its message is above")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/{OBJECT}"
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def paced_server(options, file, *arguments):
    server = subprocess.Popen(
        [options.build / "paced_server", file, "--first-byte-ms", str(options.first_byte_ms),
         "--mb-per-s", str(options.mb_per_s), *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/{OBJECT}"
    finally:
        server.kill()
        server.wait()


@dataclass
class Client:
    name: str
    command: list
    environment: dict = field(default_factory=dict)
    reads: int = 0  # Bytes, of a client that does not say so itself.
    runs: list = field(default_factory=list)

    def run(self, work):
        """Runs it once more."""
        (work / "out").mkdir()
        wall_begin = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in self.command], cwd=work / "out", stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=os.environ | self.environment)
        output, errors = process.stdout.read(), process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - wall_begin
        process.returncode = os.waitstatus_to_exitcode(status)
        shutil.rmtree(work / "out")
        if process.returncode != 0:
            sys.exit(f"fetch_contenders.py: {self.name} ended with {process.returncode}: {errors}")
        run = {"wall_s": wall_s, "cpu_s": usage.ru_utime + usage.ru_stime, "bytes": self.reads,
               "peak_kib": usage.ru_maxrss}
        if not self.reads:
            run |= json.loads(output)
        run["mb_per_s"] = run["bytes"] / 1e6 / run["wall_s"]
        run["cpu_s_per_gb"] = run["cpu_s"] / (run["bytes"] / 1e9)
        self.runs.append(run)

    def median(self, key):
        return statistics.median(run[key] for run in self.runs)

    def ratio(self, other, key="mb_per_s"):
        return statistics.median(a[key] / b[key] for a, b in zip(self.runs, other.runs))


def ours(options, name, url, *arguments):
    return Client(name, [options.build / "fetch_client", "fetcher", url,
                         "--connections", options.connections, *arguments])


def other(options, name, library, url, environment=None, *arguments):
    return Client(name, [sys.executable, HERE / "fetch_other.py", library, url, *arguments],
                  environment or {})


def aria2(options, url, size):
    return Client(f"aria2c -x{options.connections}, RAM file", [
        "aria2c", "--quiet", f"-x{options.connections}", f"-s{options.connections}", "-k8M",
        "--file-allocation=none", "--no-conf", "-o", "file", url], reads=size)


def curl_ranges(options, url, size):
    """One curl, one range a connection, one file each."""
    command = ["curl", "-q", "--parallel", "--parallel-max", str(options.connections)]
    for i in range(options.connections):
        begin, end = (size * j // options.connections for j in (i, i + 1))
        command += [*(["--next"] if i else []), "--silent", "--show-error", "--fail",
                    "-r", f"{begin}-{end - 1}", "-o", f"part-{i}", url]
    return Client(f"curl --parallel x{options.connections}, RAM files", command, reads=size)


def s3_environment(url):
    """Any credentials do: nginx asks for none."""
    endpoint = url[:url.index("/", len("http://"))]
    return {"RUNAI_STREAMER_S3_ENDPOINT": endpoint, "AWS_ENDPOINT_URL": endpoint,
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_EC2_METADATA_DISABLED": "true"}


def take_turns(options, clients, work):
    for turn in range(options.rounds):
        print(f"round {turn + 1} of {options.rounds}, load {os.getloadavg()[0]:.1f}",
              file=sys.stderr)
        for client in clients:
            client.run(work)


def print_table(clients, reference):
    print(f"\n{'client':<34}  {'MB/s':>6}  {'of ' + reference.name:>13}  {'CPU s/GB':>8}  "
          f"{'peak MiB':>8}")
    for client in clients:
        print(f"{client.name:<34}  {client.median('mb_per_s'):6.0f}  "
              f"{client.ratio(reference):13.2f}  {client.median('cpu_s_per_gb'):8.2f}  "
              f"{client.median('peak_kib') / 1024:8.0f}")


def print_bar(bar, met, numbers):
    print(f"{'met    ' if met else 'NOT MET'}  {bar}: {numbers}")


def print_ratio_bar(client, others, least=1.0):
    best = max(others, key=lambda other: other.median("mb_per_s"))
    ratio = client.ratio(best)
    print_bar(f"rate of {client.name} >= {least:.2f} of {best.name}", ratio >= least,
              f"{ratio:.2f} ({client.median('mb_per_s'):.0f} / {best.median('mb_per_s'):.0f} MB/s)")


def print_cpu_bar(client, others):
    least = min(others, key=lambda other: other.median("cpu_s_per_gb"))
    ratio = client.ratio(least, "cpu_s_per_gb")
    print_bar(f"CPU of {client.name} <= 1.20 of {least.name}", ratio <= 1.2,
              f"{ratio:.2f} ({client.median('cpu_s_per_gb'):.2f} / "
              f"{least.median('cpu_s_per_gb'):.2f} s/GB)")


def print_memory_bar(client, budget_mib):
    peak_mib = max(run["peak_kib"] for run in client.runs) / 1024
    print_bar(f"resident memory of {client.name} <= {budget_mib} + 64 MiB",
              peak_mib <= budget_mib + 64, f"{peak_mib:.0f} MiB")


def compare_unlimited(options, work, file):
    size = file.stat().st_size
    with nginx(work) as url:
        s3, key = s3_environment(url), "s3://" + OBJECT
        local = "256 MiB window"
        window = {"RUNAI_STREAMER_MEMORY_LIMIT": str(256 << 20)}
        # Once takes 0.4 s, of which connecting is a part: these two read it four times.
        raw = Client("raw recv", [options.build / "fetch_client", "raw", url,
                                  "--connections", options.connections, "--passes", 4])
        fetcher = ours(options, "Librarian", url, "--budget-mib", options.budget_mib,
                       "--request-mib", 8, "--passes", 4)  # 8 MiB: as the others.
        null = Client("curl x1 to null", ["curl", "-q", "--silent", "--show-error", "--fail",
                                          "-o", "/dev/null", url], reads=size)
        landing = [
            curl_ranges(options, url, size),
            aria2(options, url, size),
            other(options, f"obstore {options.connections} x 8 MiB", "obstore", url, None,
                  "--connections", options.connections),
            other(options, "run:ai S3", "runai", key, s3),
            other(options, "run:ai S3, concurrency 1", "runai", key,
                  s3 | {"RUNAI_STREAMER_CONCURRENCY": "1"})]
        fetcher_local = ours(options, "Librarian, local file", file, "--budget-mib",
                             options.budget_mib)
        landing_local = [other(options, "run:ai, local file", "runai", file),
                         other(options, f"run:ai, local file, {local}", "runai", file, window)]
        clients = [raw, fetcher, null, *landing, fetcher_local, *landing_local]
        take_turns(options, clients, work)
    print_table(clients, raw)
    print()
    print_ratio_bar(fetcher, [raw], 0.95)
    for beaten in [null, *landing]:
        print_ratio_bar(fetcher, [beaten])
    print_ratio_bar(fetcher_local, landing_local)
    print_cpu_bar(fetcher, landing)
    print_cpu_bar(fetcher_local, landing_local)
    print(f"         CPU of Librarian / raw recv: {fetcher.ratio(raw, 'cpu_s_per_gb'):.2f}")
    print_memory_bar(fetcher, options.budget_mib)
    print_memory_bar(fetcher_local, options.budget_mib)
    return clients


def percentile(values, percent):
    return sorted(values)[max(-(-len(values) * percent // 100) - 1, 0)]


def print_layers(client):
    """@return p95 / p50 of its layers' times."""
    seconds = [second for run in client.runs for second in run["layer_s"]]
    p50, p95 = percentile(seconds, 50), percentile(seconds, 95)
    extra = (sum(run["hedge_bytes"] for run in client.runs) /
             sum(run["bytes"] for run in client.runs))
    print(f"{client.name:<34}  {client.median('mb_per_s'):6.0f}  {p50:7.2f}  {p95:7.2f}  "
          f"{p95 / p50:7.2f}  {extra:9.1%}")
    return p95 / p50


def compare_paced(options, work, file):
    size = file.stat().st_size
    ideal = options.connections * options.mb_per_s
    window = ["--budget-mib", options.budget_mib, "--layer-mib", options.layer_mib]
    # The stricter case: one layer at a time, each in as many requests as there are connections.
    barrier = ["--budget-mib", options.layer_mib, "--layer-mib", options.layer_mib,
               "--request-mib", max(options.layer_mib // options.connections, 1)]
    hedged = ["--hedge-percent", "5"]
    passes = ["--passes", options.passes]
    with paced_server(options, file) as url:
        fetcher = ours(options, "Librarian", url, *window, "--passes", 2 * options.passes)
        others = [aria2(options, url, size),
                  other(options, f"obstore {options.connections} x 8 MiB", "obstore", url, None,
                        *passes, "--connections", options.connections)]
        take_turns(options, [fetcher, *others], work)
    slow = ["--slow-percent", "3", "--slow-factor", "10"]
    with paced_server(options, file, *slow) as url:
        stragglers = [ours(options, "window, no hedges", url, *window, *passes),
                      ours(options, "window, --hedge-budget 5%", url, *window, *passes, *hedged),
                      ours(options, "one layer, no hedges", url, *barrier, *passes),
                      ours(options, "one layer, --hedge-budget 5%", url, *barrier, *passes,
                           *hedged)]
        take_turns(options, stragglers, work)
    print_table([fetcher, *others], fetcher)
    print(f"\n{'3 % of requests 10x slow':<34}  {'MB/s':>6}  {'p50 s':>7}  {'p95 s':>7}  "
          f"{'p95/p50':>7}  {'extra':>9}")
    spread = {client.name: print_layers(client) for client in stragglers}
    print()
    steady = fetcher.median("steady_bytes_per_s") / 1e6
    print_bar(f"rate >= 0.95 of {options.connections} x {options.mb_per_s:g} MB/s",
              steady >= 0.95 * ideal,
              f"{steady / ideal:.3f} ({steady:.0f} MB/s) while there is work for every connection, "
              f"{fetcher.median('mb_per_s') / ideal:.3f} with start and end")
    for client in stragglers[1::2]:
        print_bar(f"layer p95 <= 3.5 x p50, {client.name}", spread[client.name] <= 3.5,
                  f"{spread[client.name]:.2f}")
    print_memory_bar(fetcher, options.budget_mib)
    print_memory_bar(stragglers[1], options.budget_mib)
    return [fetcher, *others, *stragglers]


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=pathlib.Path,
                        default=HERE.parents[1] / "build/release/tests/bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, help="default: 8, --paced 16")
    parser.add_argument("--mib", type=int, default=768, help="size of the file")
    parser.add_argument("--budget-mib", type=int, help="default: 256, --paced 1536")
    parser.add_argument("--paced", action="store_true")
    parser.add_argument("--first-byte-ms", type=float, default=30)
    parser.add_argument("--mb-per-s", type=float, default=40, help="of each connection")
    parser.add_argument("--layer-mib", type=int, default=128, help="--paced: size of a layer")
    parser.add_argument("--passes", type=int, default=4, help="--paced: times the file is read")
    parser.add_argument("--out", type=pathlib.Path, help="every run, JSON")
    options = parser.parse_args()
    options.build = options.build.resolve()  # Clients run in a folder of their own.
    options.connections = options.connections or (16 if options.paced else 8)
    options.budget_mib = options.budget_mib or (1536 if options.paced else 256)
    return options


def main():
    options = parse_options()
    for program, package in [("nginx", "nginx-light"), ("curl", "curl"), ("aria2c", "aria2")]:
        if shutil.which(program) is None:
            sys.exit(f"fetch_contenders.py: {program} is missing: apt-get install {package}")
    for library in ["obstore", "runai_model_streamer"]:
        if importlib.util.find_spec(library) is None:
            sys.exit(f"fetch_contenders.py: {library} is missing: install "
                     "tests/bench/requirements.txt")
    # In memory, so that neither server nor clients wait for a disk.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        work = pathlib.Path(folder)
        file = work / "www" / OBJECT
        file.parent.mkdir(parents=True)
        write_object(file, options.mib)
        clients = (compare_paced if options.paced else compare_unlimited)(options, work, file)
    if options.out:
        options.out.write_text(json.dumps({client.name: client.runs for client in clients}))


if __name__ == "__main__":
    main()
