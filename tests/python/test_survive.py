"""What happens to a job that is killed, stopped, or whose origin changes under it.

Goal: whatever ends a run, the same command continues it, fetches no byte of a finished layer again
and leaves the bytes of a run that nothing disturbed; and what is not that job's model never gets
into its store.
Method: the real program on a job of 4 parts x 6 layers x 2 captures with several shards per array,
against a server on the loopback that records every range. What a run had finished is read from its
events, which are printed behind the commit.
"""

import shutil
import signal

import pytest

from fault_server import FaultServer
from support import differing_files, part_attributes

SOURCE_CHANGED = 6


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
