"""Several processes on one store.

Goal: every part is done once in total, whoever does it; a process that dies is replaced by one that
waits; a lock of another machine is respected until it is stale. The store is that of one process.
Method: the real program, several at a time. Where the order of events matters, a process is held
at a chosen point by a server that does not answer it until the test says so.
"""

import json
import os
import re
import signal
import threading
import time

import pytest

from fault_server import ALWAYS, Fault, FaultServer
from support import Journal, differing_files, part_folders

STOPPED_BY_SIGTERM = 143
STALE_AFTER_SECONDS = 120
HOLD_SECONDS_MAX = 60  # A held request goes on by itself then, so that no test hangs.


@pytest.fixture(scope="module")
def alone(ragged_job, librarian, tmp_path_factory):
    """The store of one process, over HTTP."""
    store = tmp_path_factory.mktemp("alone") / "store"
    with FaultServer(ragged_job.original) as server:
        librarian(*extract(ragged_job, server.url + "model/", store))
    return store


@pytest.fixture
def holding_server(serve, ragged_job):
    """holding_server() -> (server, event): no weights are served until the event is set."""
    events = []

    def make():
        event = threading.Event()
        events.append(event)

        def hold(request, response, server):
            if response.begin > 0:  # Reads of a header begin at 0.
                event.wait(HOLD_SECONDS_MAX)
            return response

        return serve(ragged_job.original,
                     faults=[Fault(hold, path="*.safetensors", times=ALWAYS)]), event

    yield make
    for event in events:
        event.set()


def extract(job, model, store, *options, **limits):
    """Arguments of a job without the skeleton: these servers would hold it up before the first part."""
    return job.extract(model, store, "--skeleton", "no", *options, **limits)


def runs(store):
    """Entries of report.json, one per process that ended by itself."""
    return json.loads((store / "report.json").read_text())["runs"]


def part_events(program, name):
    return [event["part"] for event in program.events(name)]


def assert_each_part_done_once(store, programs, part_count):
    assert sum(run["parts_done_here"] for run in runs(store)) == part_count
    done = [part for program in programs for part in part_events(program, "part_done")]
    assert sorted(done) == list(range(part_count))


# Together.


@pytest.mark.parametrize("count", [2, 3])
def test_processes_on_one_store_do_every_part_once(count, ragged_job, alone, serve, start,
                                                   memory_path):
    # Method: a server that is slow enough for all of them to be at work at the same time.
    store = memory_path / "store"
    server = serve(ragged_job.original, bytes_per_second=4e6)
    programs = [start(*extract(ragged_job, server.url + "model/", store)) for _ in range(count)]
    assert [program.end() for program in programs] == [0] * count, [p.stderr for p in programs]
    assert len(runs(store)) == count
    assert_each_part_done_once(store, programs, ragged_job.PART_COUNT)
    assert differing_files(store, alone) == []


def test_a_second_process_takes_what_the_first_has_not(ragged_job, alone, holding_server, serve,
                                                       start, memory_path):
    # Method: the first is held in part 0; the second must do the other three, then wait and say
    # for whom, and end when the first has.
    store = memory_path / "store"
    held, go_on = holding_server()
    first = start(*extract(ragged_job, held.url + "model/", store))
    assert first.wait_for("part_started"), first.stderr
    second = start(*extract(ragged_job, serve(ragged_job.original).url + "model/", store))
    assert second.wait_for("waiting"), second.stderr
    assert part_events(second, "part_done") == [1, 2, 3]
    (waiting, *_) = second.events("waiting")
    assert re.search(rf"part-00000: process {first.process.pid} on ", waiting["holders"])
    go_on.set()
    assert (first.end(), second.end()) == (0, 0), (first.stderr, second.stderr)
    assert part_events(first, "part_done") == [0]
    assert_each_part_done_once(store, [first, second], ragged_job.PART_COUNT)
    assert differing_files(store, alone) == []


def test_a_process_that_waits_takes_over_the_part_of_one_that_is_killed(
        ragged_job, alone, holding_server, serve, start, memory_path):
    store = memory_path / "store"
    held, _ = holding_server()
    first = start(*extract(ragged_job, held.url + "model/", store))
    assert first.wait_for("part_started"), first.stderr
    second = start(*extract(ragged_job, serve(ragged_job.original).url + "model/", store))
    assert second.wait_for("waiting"), second.stderr
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    assert second.end() == 0, second.stderr
    assert part_events(second, "part_done") == [1, 2, 3, 0]
    assert differing_files(store, alone) == []


def test_a_process_that_waits_takes_over_the_part_of_one_that_is_stopped(
        ragged_job, alone, holding_server, serve, start, memory_path):
    store = memory_path / "store"
    held, _ = holding_server()
    first = start(*extract(ragged_job, held.url + "model/", store))
    assert first.wait_for("part_started"), first.stderr
    second = start(*extract(ragged_job, serve(ragged_job.original).url + "model/", store))
    assert second.wait_for("waiting"), second.stderr
    assert first.end(signal.SIGTERM) == STOPPED_BY_SIGTERM
    assert second.end() == 0, second.stderr
    assert_each_part_done_once(store, [first, second], ragged_job.PART_COUNT)
    assert differing_files(store, alone) == []


def test_one_of_three_is_killed_and_the_others_finish(ragged_job, alone, holding_server, serve,
                                                      start, memory_path):
    # Method: one is held in part 0 and one in part 1; the third does the rest and waits for both.
    store = memory_path / "store"
    programs, go_on = [], []
    for _ in range(2):
        held, event = holding_server()
        programs.append(start(*extract(ragged_job, held.url + "model/", store)))
        go_on.append(event)
        assert programs[-1].wait_for("part_started"), programs[-1].stderr
    third = start(*extract(ragged_job, serve(ragged_job.original).url + "model/", store))
    assert third.wait_for("waiting"), third.stderr
    for part, program in enumerate(programs):
        assert f"part-{part:05d}: process {program.process.pid} on" in (
            third.events("waiting")[0]["holders"])
    assert programs[0].end(signal.SIGKILL) == -signal.SIGKILL
    go_on[1].set()
    assert (programs[1].end(), third.end()) == (0, 0), (programs[1].stderr, third.stderr)
    assert_each_part_done_once(store, [programs[1], third], ragged_job.PART_COUNT)
    assert differing_files(store, alone) == []


def test_a_process_on_a_complete_store_has_nothing_to_do(ragged_job, alone, librarian, serve,
                                                         memory_path):
    # Goal: exit 0, no weights fetched, no byte of the store changed.
    store, server = memory_path / "store", serve(ragged_job.original)
    arguments = extract(ragged_job, server.url + "model/", store)
    librarian(*arguments)
    requests = len(server.requests)
    librarian(*arguments)
    assert [run["outcome"] for run in runs(store)] == ["complete", "already complete"]
    assert [run["parts_done_here"] for run in runs(store)] == [ragged_job.PART_COUNT, 0]
    again = server.requests[requests:]
    assert again and [r for r in again if ".safetensors" in r.path and r.begin > 0] == []
    assert differing_files(store, alone) == []


# Locks of other machines.


def leave_a_lock(store, age_seconds, **changes):
    """Make the .lock of part 0 one of another machine, last renewed `age_seconds` ago."""
    path = store / "part-00000/.lock"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    then = time.time() - age_seconds
    os.utime(path, (then, then))


@pytest.fixture
def killed_in_part_0(ragged_job, holding_server, start, serve, memory_path):
    """(store, arguments to go on with); the killed process leaves its lock."""
    store = memory_path / "store"
    held, _ = holding_server()
    program = start(*extract(ragged_job, held.url + "model/", store))
    assert program.wait_for("part_started"), program.stderr
    assert program.end(signal.SIGKILL) == -signal.SIGKILL
    assert (store / "part-00000/.lock").exists()
    return store, extract(ragged_job, serve(ragged_job.original).url + "model/", store)


ELSEWHERE = [{"boot_id": "00000000-0000-0000-0000-000000000000"}, {"host": "elsewhere"}]


@pytest.mark.parametrize("changes", ELSEWHERE, ids=["another_boot", "another_host"])
def test_a_stale_lock_of_another_machine_is_taken_over(changes, killed_in_part_0, alone, librarian):
    store, arguments = killed_in_part_0
    leave_a_lock(store, STALE_AFTER_SECONDS + 60, **changes)
    librarian(*arguments)
    assert differing_files(store, alone) == []


@pytest.mark.parametrize("changes", ELSEWHERE, ids=["another_boot", "another_host"])
def test_a_fresh_lock_of_another_machine_is_waited_for(changes, killed_in_part_0, alone, start,
                                                       librarian):
    # Method: everything else is done, then the process waits and names the holder; stopped by
    # SIGTERM, it has left the lock as it was. Once that is stale, the job completes.
    store, arguments = killed_in_part_0
    leave_a_lock(store, 0, **changes)
    lock = (store / "part-00000/.lock").read_bytes()
    holder = json.loads(lock)
    program = start(*arguments)
    assert program.wait_for("waiting"), program.stderr
    assert f"part-00000: process {holder['pid']} on {holder['host']}" in (
        program.events("waiting")[-1]["holders"])
    assert program.end(signal.SIGTERM) == STOPPED_BY_SIGTERM
    assert part_events(program, "part_done") == [1, 2, 3]
    assert len(part_folders(store)) == 3
    assert (store / "part-00000/.lock").read_bytes() == lock
    leave_a_lock(store, STALE_AFTER_SECONDS + 60)
    librarian(*arguments)
    assert differing_files(store, alone) == []


def test_a_store_lock_that_was_released_names_nobody(alone):
    # Goal: DIR/.lock stays, so what is in it must not make another machine wait for two minutes
    # for a process that has long let go of it.
    text = (alone / ".lock").read_text()
    assert not text or "host" not in json.loads(text)


@pytest.mark.parametrize("text", ["", "{", "not a lock", "\0" * 4096],
                         ids=["empty", "torn", "foreign", "zeros"])
def test_a_lock_that_nobody_holds_and_says_nothing_is_taken_over(text, killed_in_part_0, alone,
                                                                 librarian):
    # A machine that lost power may leave any of these.
    store, arguments = killed_in_part_0
    (store / "part-00000/.lock").write_text(text)
    librarian(*arguments)
    assert differing_files(store, alone) == []


def test_an_owner_that_lost_its_lock_stops_without_committing(ragged_job, alone, holding_server,
                                                              serve, start, librarian, memory_path):
    # Goal: a process that was silent for too long does not write into what is another's by now.
    # Method: it is held in part 0 while its lock is replaced by that of another machine, which is
    # what a take-over there looks like from here; then its weights arrive.
    store = memory_path / "store"
    held, go_on = holding_server()
    program = start(*extract(ragged_job, held.url + "model/", store))
    assert program.wait_for("part_started"), program.stderr
    leave_a_lock(store, 0, host="elsewhere", nonce="0123456789abcdef")
    go_on.set()
    assert program.end() == 4
    assert "elsewhere" in program.stderr
    left = {path.name.split("-")[0] for path in store.glob("part-00000/blocks.*/**/*")
            if path.is_file()}
    assert left <= {"0.partial"}, "only temporaries; a crash leaves such, too"
    assert Journal(store / "part-00000/.journal").layers() == []
    leave_a_lock(store, STALE_AFTER_SECONDS + 60)
    librarian(*extract(ragged_job, serve(ragged_job.original).url + "model/", store))
    assert differing_files(store, alone) == []
