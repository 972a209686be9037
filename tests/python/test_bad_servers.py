"""Servers and disks that fail: the right data or a clear end, never wrong data.

Goal: what the origin does wrong is either repaired (exit 0 and the same bits as from a good
server) or named in one line (exit 3 where the origin refuses, 6 where it fails or changes), after
a bounded number of tries; a full disk stops the job (5) and the same command finishes it later.
Method: FaultServer strikes chosen requests; a small tmpfs in a mount namespace of its own is the
disk. Servers that never get better cost the program's whole patience, mostly sleeping, so they are
tried side by side.
"""

import concurrent.futures
import json
import shutil
import subprocess

import pytest

from fault_server import (
    ALWAYS, Fault, changed_etag, extra_bytes, gzip, html, ignore_range, reset, short_body, status,
    without_headers, wrong_content_range)
from support import GOLDEN

BAD_INPUT, USAGE, DOES_NOT_FIT, REMOTE_FAILED = 3, 2, 5, 6
FAMILY = GOLDEN / "llama"
TOKENS = FAMILY / "tokens.safetensors"
CONFIG, INDEX, WEIGHTS = "*/config.json", "*/*.index.json", "*.safetensors"
HEADS = 3  # Requests for weights before the first one that is not for a header.


def last_run(store):
    return json.loads((store / "report.json").read_text())["runs"][-1]


@pytest.fixture(scope="module")
def right_digest(librarian, tmp_path_factory):
    """Digest of the store that the checkpoint gives without a network."""
    store = tmp_path_factory.mktemp("right") / "store"
    librarian("extract", FAMILY / "model", "--tokens", TOKENS, "--out", store)
    return last_run(store)["store_digest"]


def cases(table):
    return pytest.mark.parametrize("fault", [pytest.param(make, id=name)
                                             for name, make in table.items()])


# Rows make their fault anew: a Fault counts the requests that it struck.

REPAIRED = {
    "503 twice": lambda: Fault(status(503), times=2),
    "503 with a time to wait": lambda: Fault(status(503, retry_after=1)),
    "429 for a weight file": lambda: Fault(status(429), path=WEIGHTS),
    "a web page in the middle": lambda: Fault(html(), path=WEIGHTS, skip=HEADS),
    "ranges that are ignored": lambda: Fault(ignore_range(), times=ALWAYS),
    "ranges that are ignored now and then": lambda: Fault(ignore_range(), skip=HEADS, times=2),
    "a range that is off by one": lambda: Fault(wrong_content_range(), path=WEIGHTS, skip=HEADS),
    "a range that is off by -1": lambda: Fault(wrong_content_range(-1), path=WEIGHTS, skip=HEADS),
    "no Content-Range": lambda: Fault(without_headers("Content-Range"), path=WEIGHTS),
    "a compressed config": lambda: Fault(gzip(), path=CONFIG),
    "compressed weights": lambda: Fault(gzip(), path=WEIGHTS, skip=HEADS),
    "a header that ends early": lambda: Fault(short_body(100), path=WEIGHTS),
    "a body that ends early": lambda: Fault(short_body(100), path=WEIGHTS, skip=HEADS),
    "a connection that is reset": lambda: Fault(reset(0), path=WEIGHTS, skip=HEADS, times=2),
    "a body that is reset": lambda: Fault(reset(1000), path=WEIGHTS, skip=HEADS, times=2),
    "bytes too many": lambda: Fault(extra_bytes(10), path=WEIGHTS, skip=HEADS),
    "undeclared bytes too many": lambda: Fault(
        extra_bytes(10, declared=False), path=WEIGHTS, skip=HEADS, times=ALWAYS),
    "an ETag that is missing once": lambda: Fault(
        without_headers("ETag"), path=WEIGHTS, skip=HEADS),
    "a server without ETags": lambda: Fault(without_headers("ETag"), times=ALWAYS),
}


@cases(REPAIRED)
def test_a_server_that_recovers_costs_nothing_but_time(
        fault, librarian, serve, right_digest, tmp_path):
    fault = fault()
    server = serve(FAMILY, faults=[fault])
    store = tmp_path / "store"
    librarian("extract", server.url + "model/", "--tokens", TOKENS, "--out", store)
    assert fault.struck > 0, "the fault never happened"
    assert last_run(store)["store_digest"] == right_digest


def test_a_redirect_to_a_name_that_nobody_knows_is_tried_again(
        librarian, serve, right_digest, tmp_path):
    # Goal: a name that cannot be resolved is a failure of the network like any other.
    fault = Fault(status(302, location="http://weights.invalid/"), path=CONFIG)
    server = serve(FAMILY, faults=[fault])
    store = tmp_path / "store"
    librarian("extract", server.url + "model/", "--tokens", TOKENS, "--out", store,
              "--insecure-http")
    assert fault.struck == 1
    assert last_run(store)["store_digest"] == right_digest


REFUSED = {
    "no config": lambda: Fault(status(404), path=CONFIG, times=ALWAYS),
    "no index": lambda: Fault(status(404), path=INDEX, times=ALWAYS),
    "no weight file": lambda: Fault(status(404), path=WEIGHTS, times=ALWAYS),
    "a weight file that vanishes": lambda: Fault(
        status(404), path=WEIGHTS, skip=HEADS, times=ALWAYS),
    "a config that is forbidden": lambda: Fault(status(403), path=CONFIG, times=ALWAYS),
    "an index that is forbidden": lambda: Fault(status(403), path=INDEX, times=ALWAYS),
    "weights that are forbidden": lambda: Fault(status(403), path=WEIGHTS, times=ALWAYS),
    "weights that need a login": lambda: Fault(status(401), path=WEIGHTS, times=ALWAYS),
    "weights that are forbidden later": lambda: Fault(
        status(403), path=WEIGHTS, skip=HEADS, times=ALWAYS),
    "a web page instead of the config": lambda: Fault(html(), path=CONFIG, times=ALWAYS),
    "a web page instead of the index": lambda: Fault(html(), path=INDEX, times=ALWAYS),
    "a web page instead of weights": lambda: Fault(html(), path=WEIGHTS, times=ALWAYS),
    "a status nobody knows": lambda: Fault(status(418), path=CONFIG, times=ALWAYS),
    "a redirect in a circle": lambda: Fault(
        status(302, location="/model/config.json"), path=CONFIG, times=ALWAYS),
    "a redirect to a local file": lambda: Fault(
        status(302, location="file:///etc/hostname"), path=CONFIG, times=ALWAYS),
    "a redirect to plain http elsewhere": lambda: Fault(
        status(302, location="http://192.0.2.1/config.json"), path=CONFIG, times=ALWAYS),
}


@cases(REFUSED)
def test_an_origin_that_refuses_ends_the_job_at_once(fault, refused, serve, tmp_path):
    fault = fault()
    server = serve(FAMILY, faults=[fault])
    refused("extract", server.url + "model/", "--tokens", TOKENS, "--out", tmp_path / "store",
            exit_code=BAD_INPUT, names=[server.url])
    assert 1 <= fault.struck <= 10


@pytest.mark.parametrize("honour_if_match", [True, False])
@pytest.mark.parametrize("skip", [HEADS, HEADS + 2])
def test_weights_that_change_during_the_job_end_it(skip, honour_if_match, refused, serve, tmp_path):
    server = serve(FAMILY, faults=[Fault(
        changed_etag(honour_if_match=honour_if_match), path=WEIGHTS, skip=skip, times=ALWAYS)])
    refused("extract", server.url + "model/", "--tokens", TOKENS, "--out", tmp_path / "store",
            exit_code=REMOTE_FAILED, names=[server.url, ".safetensors", "replaced"])


def test_weights_that_change_between_two_runs_end_the_job(
        refused, librarian, serve, tmp_path, right_digest):
    """The first run stops in its third layer; then the files have another ETag, then the old."""
    server = serve(FAMILY, faults=[Fault(status(404), path=WEIGHTS, skip=HEADS + 3, times=ALWAYS)])
    store = tmp_path / "store"
    command = ("extract", server.url + "model/", "--tokens", TOKENS, "--out", store,
               "--save-state-every", "0")
    refused(*command, exit_code=BAD_INPUT)
    server.faults[:] = [Fault(changed_etag(), path=WEIGHTS, times=ALWAYS)]
    refused(*command, exit_code=REMOTE_FAILED, names=[".safetensors"])
    server.faults[:] = []
    librarian(*command)
    assert last_run(store)["store_digest"] == right_digest


def test_an_etag_with_an_escape_character_is_not_shown_raw(refused, serve, tmp_path):
    server = serve(FAMILY, faults=[Fault(changed_etag('"\x1b[2J"', honour_if_match=False),
                                         path=WEIGHTS, skip=HEADS, times=ALWAYS)])
    refused("extract", server.url + "model/", "--tokens", TOKENS, "--out", tmp_path / "store",
            exit_code=REMOTE_FAILED, names=[server.url])


def close_port(request, response, server):
    """This request fails and nobody listens any more."""
    server._http.socket.close()
    return status(503)(request, response, server)


def for_ever(change, path=WEIGHTS, skip=HEADS):
    return Fault(change, path=path, skip=skip, times=ALWAYS)


NEVER_BETTER = {  # The fault, and a word of what the program says last.
    "an overloaded server": (for_ever(status(503), path="*", skip=0), "503"),
    "a web page": (for_ever(html()), "web page"),
    "a range that is off by one": (for_ever(wrong_content_range()), "Content-Range"),
    "a range that is off by -1": (for_ever(wrong_content_range(-1)), "Content-Range"),
    "gzip": (for_ever(gzip()), "gzip"),
    "a short body": (for_ever(short_body(100)), "ended after"),
    "a reset": (for_ever(reset(0)), "reset"),
    "bytes too many": (for_ever(extra_bytes(10)), "instead of"),
    "a server that goes away": (for_ever(close_port, skip=HEADS + 2), "onnect"),
    "nobody there": (None, "onnect"),
}


def test_a_server_that_never_recovers_ends_the_job_and_another_source_finishes_it(
        refused, librarian, serve, right_digest, tmp_path):
    def run(name):
        fault, word = NEVER_BETTER[name]
        server = serve(FAMILY, faults=[fault] if fault else [])
        if fault is None:
            server.stop()  # Nobody else takes the port in that minute.
        store = tmp_path / name.replace(" ", "_")
        line = refused("extract", server.url + "model/", "--tokens", TOKENS, "--out", store,
                       exit_code=REMOTE_FAILED, names=[server.url, "8 failures", "resumes"])
        assert word in line or "instead of" in line, line
        # Up to eight tries for each of the few requests under way.
        assert fault is None or word == "onnect" or 8 <= fault.struck <= 40, fault.struck
        librarian("extract", FAMILY / "model", "--tokens", TOKENS, "--out", store)
        librarian("verify", store)
        return last_run(store)["store_digest"]

    with concurrent.futures.ThreadPoolExecutor(len(NEVER_BETTER)) as threads:
        digests = dict(zip(NEVER_BETTER, threads.map(run, NEVER_BETTER)))
    assert digests == dict.fromkeys(NEVER_BETTER, right_digest)


@pytest.mark.parametrize("url,word", [
    ("s3://No_Bucket/model", "bucket's name"), ("hf://org/na me", "hf"), ("ftp://host/model/", "ftp"),
    ("gs://bucket/model", "gs"), ("http:///model/", "http"), ("http://", "http"),
    ("http://192.0.2.1/model/", "--insecure-http"), ("http://127.0.0.1.example.com/", "http"),
    ("http://127.0.0.1:99999/model/", "URL"), ("http://127.0.0.1:x/model/", "URL"),
    ("http://[::1/model/", "URL"), ("http://localhost\n.evil/", "http"), ("", "empty")],
    ids=ascii)
def test_an_address_that_is_not_supported_is_refused_by_name(url, word, refused, tmp_path):
    refused("extract", url, "--tokens", TOKENS, "--out", tmp_path / "store", exit_code=USAGE,
            names=[word])


def test_a_password_in_an_address_is_never_shown(librarian, tmp_path):
    url = "http://user:s3cr3t-word@127.0.0.1:9/model/?token=s3cr3t-word"
    done = librarian("plan", url, "--tokens", TOKENS, exit_code=None)
    assert done.returncode in (USAGE, BAD_INPUT, REMOTE_FAILED)
    assert "s3cr3t-word" not in done.stdout + done.stderr


# Disks. `in_namespace` runs a shell script in which mounts are possible and end with it.


@pytest.fixture
def in_namespace():
    command = ["unshare", "-rm", "sh", "-euc"]
    probe = "mount -t tmpfs -o size=64k tmpfs /mnt"
    if not shutil.which("unshare") or subprocess.run(
            [*command, probe], capture_output=True).returncode != 0:
        pytest.skip("mount namespaces are not available here")

    def run(script, *arguments):
        done = subprocess.run([*command, script, "sh", *map(str, arguments)], text=True,
                              capture_output=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


FULL_DISK = """
mkdir -p "$2"; mount -t tmpfs -o size=$3k tmpfs "$2"
extract() { "$1" extract "$4" --tokens "$5" --out "$2/store" --save-state-every 0 --threads 2; }
code=0; extract "$@" > "$6/first.out" 2> "$6/first.err" || code=$?
echo $code > "$6/first.code"
"$1" verify "$2/store" > "$6/verify.out" 2>&1 || true
mount -o remount,size=8m "$2"
extract "$@" > "$6/second.out"
"$1" verify "$2/store" > /dev/null
cp "$2/store/report.json" "$6/report.json"
find "$2" -name "*.partial-*" > "$6/left"
"""


@pytest.mark.parametrize("size_kib", [40, 44, 52, 60, 72, 84, 96, 104])
def test_a_full_disk_stops_the_job_until_there_is_room(
        size_kib, in_namespace, librarian_binary, right_digest, tmp_path):
    """The sizes are between what the plan takes for enough and what the store takes."""
    out = tmp_path / "out"
    out.mkdir()
    in_namespace(FULL_DISK, librarian_binary, tmp_path / "disk", size_kib, FAMILY / "model",
                 TOKENS, out)
    assert (out / "first.code").read_text() == f"{DOES_NOT_FIT}\n"
    line = (out / "first.err").read_text()
    assert line.startswith("librarian: ") and line.count("\n") == 1
    assert "disk" in line or "No space left" in line, line
    assert "complete" not in (out / "first.out").read_text()
    assert "1 of 1" not in (out / "verify.out").read_text()
    assert last_run(out)["store_digest"] == right_digest
    assert (out / "left").read_text() == ""


def test_a_disk_that_is_too_small_is_refused_before_the_job_begins(
        in_namespace, librarian_binary, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    in_namespace("""
        mkdir -p "$2"; mount -t tmpfs -o size=16k tmpfs "$2"; code=0
        "$1" extract "$3" --tokens "$4" --out "$2/store" > "$5/out" 2> "$5/err" || code=$?
        echo $code > "$5/code"; ls -A "$2" > "$5/left" """,
                 librarian_binary, tmp_path / "disk", FAMILY / "model", TOKENS, out)
    assert (out / "code").read_text() == f"{DOES_NOT_FIT}\n"
    assert "free" in (out / "err").read_text() and (out / "err").read_text().count("\n") == 1
    assert (out / "left").read_text() == ""


def test_a_directory_that_cannot_be_written_is_refused_by_name(
        in_namespace, librarian_binary, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    in_namespace("""
        mkdir -p "$2"; mount -t tmpfs -o ro tmpfs "$2"; code=0
        "$1" extract "$3" --tokens "$4" --out "$2/store" > "$5/out" 2> "$5/err" || code=$?
        echo $code > "$5/code" """,
                 librarian_binary, tmp_path / "disk", FAMILY / "model", TOKENS, out)
    assert (out / "code").read_text() == f"{DOES_NOT_FIT}\n"
    line = (out / "err").read_text()
    assert str(tmp_path / "disk") in line and line.count("\n") == 1, line


def test_a_store_on_a_read_only_disk_can_be_verified_and_inspected(
        in_namespace, librarian, librarian_binary, tmp_path):
    store = tmp_path / "disk" / "store"
    librarian("extract", FAMILY / "model", "--tokens", TOKENS, "--out", store)
    done = in_namespace('mount --bind "$2" "$2"; mount -o remount,ro,bind "$2"; '
                        '"$1" verify "$3"; "$1" inspect "$3"',
                        librarian_binary, tmp_path / "disk", store)
    assert "1 of 1 parts, none damaged" in done.stdout
