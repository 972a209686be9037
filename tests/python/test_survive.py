"""What happens to a job that is killed, stopped, or whose origin changes under it.

Goal: whatever ends a run, the same command continues it, fetches no byte of a finished layer again
and leaves the bytes of a run that nothing disturbed; and what is not that job's model never gets
into its store.
Method: the real program on a job of 4 parts x 6 layers x 2 captures with several shards per array,
against a server on the loopback that records every range. What a run had finished is read from its
events, which are printed behind the commit.
"""

import http.client
import json
import pathlib
import random
import re
import shutil
import signal
import struct
import subprocess
import time

import pytest

from fault_server import ALWAYS, Fault, FaultServer, stall, status
from support import Journal, differing_files, part_attributes, part_folders, store_files

ANOTHER_JOB, SOURCE_CHANGED = 4, 6


@pytest.fixture(scope="module")
def undisturbed(ragged_job, librarian, tmp_path_factory):
    """The store of an uninterrupted run over HTTP."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    with FaultServer(ragged_job.original) as server:
        librarian(*ragged_job.extract(server.url + "model/", store))
    return store


def without_verified(names):
    """Names less the parts' zarr.json: they also say how the weights were read (`verified`)."""
    return [name for name in names if not name.endswith("/zarr.json") or name.count("/") > 1]


# The origin is replaced by another model of the same shapes.
#
# Goal: exit code 6 however often it is tried, nothing of the other model in the store, and the
# original resumes and completes.
# Method: kill at a chosen point, offer other weights under the same or another address twice (the
# first try must not make the second one trust them), then give the original back.


def killed_inside_part_0(start, arguments, store):
    program = start(*arguments)
    assert program.wait_for("layer_done", 3), program.stderr
    program.end(signal.SIGKILL)


def killed_between_parts(start, arguments, store):
    """Part 0 is complete, nothing of the others was begun."""
    program = start(*arguments)
    assert program.end() == 0, program.stderr
    for part in (1, 2, 3):
        shutil.rmtree(store / f"part-{part:05d}")


@pytest.mark.parametrize("killed", [killed_inside_part_0, killed_between_parts])
@pytest.mark.parametrize("address", ["same_url", "another_url", "local_path"])
def test_a_replaced_origin_is_refused_each_time_and_the_original_resumes(
        killed, address, ragged_job, undisturbed, librarian, serve, start, tmp_path):
    store = tmp_path / "store"
    server = serve(ragged_job.original)
    original = server.url + "model/"
    killed(start, ragged_job.extract(original, store), store)

    if address == "same_url":
        server.root, replacement = ragged_job.replacement, original
    elif address == "another_url":
        replacement = serve(ragged_job.replacement).url + "model/"
    else:
        replacement = ragged_job.replacement / "model"
    for _ in range(2):
        librarian(*ragged_job.extract(replacement, store), exit_code=SOURCE_CHANGED)

    server.root = ragged_job.original
    librarian(*ragged_job.extract(original, store))
    assert differing_files(store, undisturbed) == []


@pytest.mark.parametrize("address", ["another_url", "local_path"])
def test_the_same_model_under_another_address_resumes(address, ragged_job, undisturbed, librarian,
                                                      serve, start, tmp_path):
    # Goal: an address is not part of a job's identity.
    # Method: kill inside part 0, go on from another server or from the files.
    store = tmp_path / "store"
    killed_inside_part_0(start, ragged_job.extract(serve(ragged_job.original).url + "model/", store),
                         store)
    moved = (serve(ragged_job.original).url + "model/" if address == "another_url"
             else ragged_job.original / "model")
    librarian(*ragged_job.extract(moved, store))
    assert without_verified(differing_files(store, undisturbed)) == []


def test_two_processes_with_different_models_never_fill_one_store(ragged_job, serve, start,
                                                                  librarian, tmp_path):
    # Goal: weights are compared between processes that run at the same time, too.
    # Method: one process is held back by a slow server inside part 0 while another one is given
    # another model of the same shapes and takes the other parts. At most one may exit 0, and no
    # two complete parts may differ in a tensor's digest.
    store = tmp_path / "store"
    slow = serve(ragged_job.original, bytes_per_second=300e3).url + "model/"
    first = start(*ragged_job.extract(slow, store))
    assert first.wait_for("layer_done"), first.stderr
    second = start(*ragged_job.extract(serve(ragged_job.replacement).url + "model/", store))
    codes = {first.end(), second.end()}
    weights = {path.read_bytes() for path in store.glob("part-*/weights.json")
               if (path.parent / "zarr.json").exists()}
    assert len(weights) <= 1, "complete parts of two models in one store"
    assert SOURCE_CHANGED in codes, codes


def test_a_part_read_without_checks_is_never_called_verified(ragged_job, librarian, serve, start,
                                                             tmp_path):
    # Goal: `verified` is the weakest of all ways in which the part's weights were read.
    # Method: layers 0 and 1 of part 0 come from local files, the rest over HTTP.
    store = tmp_path / "store"
    killed_inside_part_0(start, ragged_job.extract(ragged_job.original / "model", store), store)
    librarian(*ragged_job.extract(serve(ragged_job.original).url + "model/", store))
    assert part_attributes(store, 0)["verified"] == "none"


# Killed at any moment.
#
# Goal: after kill -9 the same command ends in the store of an uninterrupted run, and the process
# that resumes fetches no weight byte of a layer that was finished.
# Method: the real program against a server that records ranges. After the kill the parts' journals
# say what is finished; the tensors' places in the files say which layer a range belongs to. A
# tensor may be fetched once for each part in which its layer is not finished.

FETCHED_TO_NEEDED_MAX = 1.02
HEADER_READ_BYTES_MAX = 128 << 10  # The first request for a file; its header is in there.
CONFIGURATIONS = {
    "disk": ["--capture", "resid_post@all,attn_out@all", "--state", "disk"],
    "captured": ["--capture", "resid_post@all", "--state", "memory"],
    "saved": ["--capture", "attn_out@all", "--state", "memory", "--save-state-every", "0"],
}
UNSAVED = ["--capture", "attn_out@all", "--state", "memory"]
KILLS = {"disk": 34, "captured": 33, "saved": 33}
CHAINED_KILLS = 20
SAMPLES = 8  # Two parts.


def few_samples(job, model, store, captures):
    return job.extract(model, store, "--num-samples", SAMPLES, captures=captures)


class WeightPlaces:
    """Where each tensor lies, from the weight files' headers."""

    def __init__(self, model):
        self.places = {}  # tensor -> (file, begin, end)
        for path in sorted(pathlib.Path(model).glob("*.safetensors")):
            data = path.read_bytes()
            (header_bytes,) = struct.unpack_from("<Q", data)
            header = json.loads(data[8 : 8 + header_bytes])
            header.pop("__metadata__", None)
            for name, entry in header.items():
                begin, end = (8 + header_bytes + at for at in entry["data_offsets"])
                self.places[name] = (path.name, begin, end)

    @staticmethod
    def layer(name):
        """-1 for the embedding, None for what the jobs here do not need."""
        inside = re.match(r"model\.layers\.(\d+)\.", name)
        return int(inside[1]) if inside else -1 if "embed_tokens" in name else None

    def layer_bytes(self, layer):
        return sum(end - begin for name, (_, begin, end) in self.places.items()
                   if self.layer(name) == layer)

    def last_byte(self, layer):
        """(file, offset) of a byte that only a fetch of the layer's weights covers."""
        file, _, end = max(place for name, place in self.places.items()
                           if self.layer(name) == layer)
        assert end > HEADER_READ_BYTES_MAX, "a header read covers it, too"
        return file, end - 1

    def fetched(self, records):
        """{tensor: how often its bytes were asked for}. Ranges from byte 0 are header reads."""
        counts = dict.fromkeys(self.places, 0.0)
        for record in records:
            if record.status != 206 or record.begin == 0:
                assert record.end <= HEADER_READ_BYTES_MAX, record
                continue
            for name, (file, begin, end) in self.places.items():
                if record.path.endswith("/" + file):
                    shared = min(end, record.end) - max(begin, record.begin)
                    counts[name] += max(shared, 0) / (end - begin)
        return counts


@pytest.fixture(scope="module")
def places(ragged_job):
    return WeightPlaces(ragged_job.original / "model")


@pytest.fixture(scope="module")
def undisturbed_few(ragged_job, librarian, tmp_path_factory):
    """{captures: store} of uninterrupted runs over HTTP, for the configurations."""
    stores = {}
    with FaultServer(ragged_job.original) as server:
        for captures in [*CONFIGURATIONS.values(), UNSAVED]:
            if captures[1] not in stores:
                stores[captures[1]] = tmp_path_factory.mktemp("undisturbed") / "store"
                librarian(*few_samples(ragged_job, server.url + "model/", stores[captures[1]],
                                       captures))
    return stores


def ask(server):
    """A request of our own, after which every connection made before has been accepted.

    Returns its connection's number: requests of processes started later have greater ones.
    """
    path = f"/fence-{time.monotonic_ns()}"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("HEAD", path)
    connection.getresponse().read()
    connection.close()
    while True:
        for record in server.requests:
            if record.path == path:
                return record.connection


def unfinished_parts(store, part_count, layers):
    """{layer: number of parts in which it is not finished}."""
    counts = dict.fromkeys(layers, 0)
    for part in range(part_count):
        folder = store / f"part-{part:05d}"
        journal = folder / ".journal"
        if (folder / "zarr.json").exists():
            continue
        finished = Journal(journal).finished_layers(max(layers)) if journal.exists() else []
        for layer in set(layers) - set(finished):
            counts[layer] += 1
    return counts


def assert_not_fetched_again(places, unfinished, records, skeleton=False):
    """Each tensor was asked for at most once per part in which its layer was not finished, and
    those outside the layers once more if the skeleton was not there."""
    def needed(name):
        outside = places.layer(name) in (-1, None)
        return unfinished.get(places.layer(name), 0) + (outside and skeleton)

    too_often = {name: (count, needed(name)) for name, count in places.fetched(records).items()
                 if count > needed(name)}
    assert too_often == {}, "tensor: (times fetched, times needed)"


def has_skeleton(store):
    return (store / "model/librarian.json").exists()


def last_run(store):
    return json.loads((store / "report.json").read_text())["runs"][-1]


def resume_and_check(arguments, store, expected, part_count, server, places, job, librarian):
    """Resume after a kill: same store as `expected`, nothing fetched twice."""
    unfinished = unfinished_parts(store, part_count, job.LAYERS)
    skeleton = not has_skeleton(store)
    before = ask(server)
    librarian(*arguments)
    assert_not_fetched_again(places, unfinished,
                             [r for r in server.requests if r.connection > before], skeleton)
    assert differing_files(store, expected) == []
    needed_bytes = sum(places.layer_bytes(layer) * count for layer, count in unfinished.items())
    run = last_run(store)
    assert run["needed_bytes"] == needed_bytes + run["skeleton_bytes"]
    assert (run["skeleton_bytes"] > 0) == skeleton
    assert run["fetched_bytes"] <= FETCHED_TO_NEEDED_MAX * run["needed_bytes"]


def test_an_uninterrupted_run_fetches_each_weight_once_per_part(ragged_job, places, librarian,
                                                                serve, memory_path):
    store, server = memory_path / "store", serve(ragged_job.original)
    librarian(*ragged_job.extract(server.url + "model/", store, "--skeleton", "no"))
    needed_bytes = ragged_job.PART_COUNT * sum(map(places.layer_bytes, ragged_job.LAYERS))
    assert last_run(store)["needed_bytes"] == needed_bytes
    assert last_run(store)["fetched_bytes"] <= FETCHED_TO_NEEDED_MAX * needed_bytes
    sent = [r.bytes_sent for r in server.requests if ".safetensors" in r.path and r.begin > 0]
    assert needed_bytes <= sum(sent) <= FETCHED_TO_NEEDED_MAX * needed_bytes
    assert {name: count for name, count in places.fetched(server.requests).items()
            if places.layer(name) is not None and count != ragged_job.PART_COUNT} == {}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_kills_at_random_moments_leave_no_trace(configuration, ragged_job, undisturbed_few, places,
                                                librarian, serve, start, memory_path):
    # Method: a moment is a layer's commit (or the start) and a random time behind it. A run that
    # was over before its kill does not count and is drawn again.
    draw = random.Random(f"kills of {configuration}")
    captures = CONFIGURATIONS[configuration]
    expected = undisturbed_few[captures[1]]
    part_count = len(part_folders(expected))
    server = serve(ragged_job.original)
    kills, partly_done = 0, 0
    for attempt in range(4 * KILLS[configuration]):
        if kills == KILLS[configuration]:
            break
        store = memory_path / str(attempt)
        arguments = few_samples(ragged_job, server.url + "model/", store, captures)
        commits = draw.randrange(part_count * len(ragged_job.LAYERS))
        delay_seconds = draw.uniform(0, 0.004 if commits else 0.06)
        program = start(*arguments)
        if commits:
            program.wait_for("layer_done", commits)
        time.sleep(delay_seconds)
        if program.end(signal.SIGKILL) == -signal.SIGKILL:
            kills += 1
            partly_done += any(store.glob("part-*/.journal"))
            resume_and_check(arguments, store, expected, part_count, server, places, ragged_job,
                             librarian)
        shutil.rmtree(store)
    assert kills == KILLS[configuration]
    assert partly_done > kills / 4, "hardly a kill struck inside a part"


def test_many_kills_of_one_job_add_up_to_one_run(ragged_job, places, librarian, serve, start,
                                                 memory_path):
    # Method: small parts, so that there is work for every process; a server that is slow enough
    # for each of them to do a layer or two before it dies.
    draw = random.Random("chained kills")
    store, expected = memory_path / "store", memory_path / "expected"
    server = serve(ragged_job.original, bytes_per_second=6e6)

    def arguments(out):
        return ragged_job.extract(server.url + "model/", out, "--state", "disk", part_tokens=40)

    librarian(*arguments(expected))
    part_count = len(part_folders(expected))
    unfinished, before = dict.fromkeys(ragged_job.LAYERS, part_count), ask(server)
    for _ in range(CHAINED_KILLS):
        skeleton = not has_skeleton(store)
        program = start(*arguments(store))
        if draw.random() < 0.8:
            program.wait_for("layer_done")
            time.sleep(draw.uniform(0, 0.01))
        else:
            time.sleep(draw.uniform(0, 0.1))
        assert program.end(signal.SIGKILL) == -signal.SIGKILL, "the job is too short"
        fence = ask(server)
        assert_not_fetched_again(places, unfinished,
                                 [r for r in server.requests if before < r.connection < fence],
                                 skeleton)
        left = unfinished_parts(store, part_count, ragged_job.LAYERS)
        assert all(left[layer] <= unfinished[layer] for layer in left), "finished layers were lost"
        unfinished, before = left, fence
    assert sum(unfinished.values()) < part_count * len(ragged_job.LAYERS), "nothing was finished"
    resume_and_check(arguments(store), store, expected, part_count, server, places, ragged_job,
                     librarian)


def test_a_part_without_durable_state_starts_over_and_costs_its_own_bytes_only(
        ragged_job, undisturbed_few, places, librarian, serve, start, memory_path):
    # Goal: where no state was saved (10 minutes are not over), a kill costs one part's weights.
    # Method: the last layer of part 1 never arrives; the kill comes when the others are committed.
    store, expected = memory_path / "store", undisturbed_few[UNSAVED[1]]
    file, offset = places.last_byte(max(ragged_job.LAYERS))
    server = serve(ragged_job.original, faults=[
        Fault(stall(), path="*/" + file, covering=offset, skip=1)])
    arguments = few_samples(ragged_job, server.url + "model/", store, UNSAVED)
    program = start(*arguments)
    layers = len(ragged_job.LAYERS)
    assert program.wait_for("layer_done", layers + layers - 1), program.stderr
    assert program.end(signal.SIGKILL) == -signal.SIGKILL

    journal = Journal(store / "part-00001/.journal")
    assert journal.layers() == list(ragged_job.LAYERS)[:-1]
    assert journal.finished_layers(max(ragged_job.LAYERS)) == []
    resume_and_check(arguments, store, expected, 2, server, places, ragged_job, librarian)
    part_bytes = sum(map(places.layer_bytes, ragged_job.LAYERS))
    assert last_run(store)["needed_bytes"] == part_bytes  # The skeleton came before the parts.


# Stopped by a signal.

STOP_SECONDS_MAX = 10
SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 143}


def stop(program, number):
    """Send the signal; returns the exit code, which must come within the promised time."""
    begin = time.monotonic()
    code = program.end(number)
    assert time.monotonic() - begin < STOP_SECONDS_MAX
    return code


@pytest.mark.parametrize("answer", [stall(after_bytes=100), status(503, retry_after=60)],
                         ids=["silence", "try_later"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_stops_the_run_which_then_resumes(number, answer, ragged_job, undisturbed_few,
                                                   places, librarian, serve, start, memory_path):
    # Method: the last layer is never served, so the run waits when the signal comes; then it is.
    captures = CONFIGURATIONS["disk"]
    store, expected = memory_path / "store", undisturbed_few[captures[1]]
    file, offset = places.last_byte(max(ragged_job.LAYERS))
    server = serve(ragged_job.original, faults=[
        Fault(answer, path="*/" + file, covering=offset, times=ALWAYS)])
    arguments = few_samples(ragged_job, server.url + "model/", store, captures)
    program = start(*arguments)
    assert program.wait_for("layer_done"), program.stderr
    assert stop(program, number) == SIGNALS[number]
    assert re.fullmatch(r"librarian: [^\n]*resume[^\n]*\n", program.stderr), program.stderr
    server.faults.clear()
    resume_and_check(arguments, store, expected, 2, server, places, ragged_job, librarian)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_before_the_work_begins_stops_at_once_and_writes_nothing(
        number, ragged_job, serve, start, memory_path):
    # Method: the model's config never arrives.
    server = serve(ragged_job.original, faults=[Fault(stall(), path="*/config.json")])
    program = start(*ragged_job.extract(server.url + "model/", memory_path / "store"))
    while not server.faults[0].struck:
        assert program.process.poll() is None, program.stderr
        time.sleep(0.01)
    assert stop(program, number) == SIGNALS[number]
    assert not (memory_path / "store").exists()


# Another job's directory.


def with_other_tokens(job, model, store, folder):
    tokens = bytearray(job.tokens.read_bytes())
    tokens[-len(job.SAMPLE_LENGTHS) * 8 - 8 - 4] ^= 1  # The last id; the offsets are behind it.
    (folder / "tokens.safetensors").write_bytes(tokens)
    arguments = job.extract(model, store)
    arguments[arguments.index("--tokens") + 1] = folder / "tokens.safetensors"
    return arguments


DIFFERENT_JOBS = {
    "dtype": lambda job, model, store, _: job.extract(model, store, "--dtype", "f32"),
    "captures": lambda job, model, store, _: job.extract(
        model, store, captures=["--capture", "resid_post@all"]),
    "input_ids": with_other_tokens,
    "samples": lambda job, model, store, _: job.extract(model, store, "--num-samples", 15),
    "codec": lambda job, model, store, _: job.extract(model, store, "--codec", "none"),
    "partition": lambda job, model, store, _: job.extract(model, store, part_tokens=50),
}


@pytest.mark.parametrize("interrupted", [False, True], ids=["complete", "interrupted"])
@pytest.mark.parametrize("field", DIFFERENT_JOBS)
def test_another_job_is_refused_by_the_name_of_what_differs(
        field, interrupted, ragged_job, refused_job_store, librarian, memory_path):
    store = shutil.copytree(refused_job_store[interrupted], memory_path / "store")
    others = {name: (store / name).read_bytes() for name in ("report.json", ".lock")
              if (store / name).exists()}
    arguments = DIFFERENT_JOBS[field](ragged_job, ragged_job.original / "model", store, memory_path)
    done = librarian(*arguments, exit_code=ANOTHER_JOB)
    assert re.search(rf"differs in [^;]*\b{field}", done.stderr), done.stderr
    assert differing_files(store, refused_job_store[interrupted]) == []
    assert {name: (store / name).read_bytes() for name in others} == others


@pytest.fixture(scope="module")
def refused_job_store(ragged_job, librarian, librarian_binary, tmp_path_factory):
    """{interrupted: store}: one that is complete, and one killed inside part 0."""
    from support import Program
    stores = {done: tmp_path_factory.mktemp("job") / "store" for done in (False, True)}
    librarian(*ragged_job.extract(ragged_job.original / "model", stores[False]))
    with FaultServer(ragged_job.original, bytes_per_second=1e6) as server:
        program = Program([librarian_binary, *ragged_job.extract(
            server.url + "model/", stores[True]), "--json"])
        program.wait_for("layer_done", 3)
        assert program.end(signal.SIGKILL) == -signal.SIGKILL
    assert (stores[True] / "part-00000/.journal").exists()
    return stores


def test_a_command_without_part_tokens_takes_the_jobs_partition(ragged_job, librarian, memory_path):
    store = memory_path / "store"
    arguments = ragged_job.extract(ragged_job.original / "model", store)
    librarian(*arguments)
    shutil.rmtree(store / "part-00001")
    before = store_files(store)
    at = arguments.index("--part-tokens")
    librarian(*arguments[:at], *arguments[at + 2 :])
    assert last_run(store)["parts_done_here"] == 1
    assert {name for name, data in store_files(store).items() if before.get(name, 0) != data} == {
        name for name in store_files(store) if name.startswith("part-00001")}


# Killed at every removal of a file.

REMOVALS = "unlink,unlinkat,rmdir"
REMOVALS_MAX = 60


@pytest.fixture(scope="module")
def strace():
    """Path of a strace that may trace, else the test is skipped."""
    program = shutil.which("strace")
    if not program:
        pytest.skip("strace is not installed")
    trial = [program, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={REMOVALS}", "-e",
             "inject=unlink:signal=KILL:when=1", "true"]
    done = subprocess.run(trial, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"strace cannot trace here: {done.stderr.strip()}")
    return program


@pytest.mark.parametrize("configuration", ["disk", "saved"])
def test_a_kill_at_any_removal_leaves_nothing_behind(configuration, ragged_job, undisturbed_few,
                                                     librarian_binary, librarian, serve, strace,
                                                     memory_path):
    # Goal: the last steps of a part are as safe as the others: no lock, journal or scratch stays.
    # Method: strace kills the program as it enters its Nth removal, N = 1, 2, ... until it has
    # fewer. (A thread counts its own, so every N strikes at some thread's Nth.)
    captures = ["--capture", "attn_out@all", *CONFIGURATIONS[configuration][2:]]
    server = serve(ragged_job.original)
    kills = 0
    for call in REMOVALS.split(","):
        for count in range(1, REMOVALS_MAX):
            store = memory_path / f"{call}-{count}"
            arguments = few_samples(ragged_job, server.url + "model/", store, captures)
            traced = subprocess.run(
                [strace, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
                 f"inject={call}:signal=KILL:when={count}", librarian_binary,
                 *map(str, arguments)], capture_output=True, text=True)
            if traced.returncode == 0:
                break
            assert traced.returncode == -signal.SIGKILL, traced.stderr
            kills += 1
            librarian(*arguments)
            assert differing_files(store, undisturbed_few["attn_out@all"]) == []
            shutil.rmtree(store)
        else:
            pytest.fail(f"more than {REMOVALS_MAX} times {call}: an endless loop?")
    assert kills > 5
