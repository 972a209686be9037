"""--header-file, --max-bandwidth, --hedge-budget: what they take, and where headers go."""

import pytest

from fault_server import ALWAYS, Fault, status

USAGE = 2
MODEL, TOKENS = "model/", "tokens.safetensors"
CANARY = "X-Api-Key: canary0of0a0header"


@pytest.fixture
def header_file(tmp_path):
    """header_file(text, mode) -> path of such a file."""

    def write(text, mode=0o600):
        path = tmp_path / "headers"
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


def headers_of(server):
    """The headers of each request that the server will get."""
    seen, respond = [], server.respond

    def record(request):
        seen.append(request.headers)
        return respond(request)

    server.respond = record
    return seen


def test_headers_reach_the_models_server_and_no_other(librarian, serve, ragged_job, header_file,
                                                      tmp_path):
    # Method: each weight file is redirected to another port.
    elsewhere, server = serve(ragged_job.original), serve(ragged_job.original)
    seen_elsewhere, seen = headers_of(elsewhere), headers_of(server)
    for path in sorted((ragged_job.original / "model").glob("*.safetensors")):
        server.faults.append(Fault(
            status(302, location=f"{elsewhere.url}model/{path.name}"),
            path=f"*/{path.name}", times=ALWAYS))
    store = tmp_path / "store"
    librarian(*ragged_job.extract(server.url + MODEL, store), "--header-file",
              header_file(f"# ours\n\n{CANARY}\r\n"))
    name, value = CANARY.split(": ")
    assert seen and seen_elsewhere
    assert all(headers.get(name) == value for headers in seen)
    assert not any(name in headers for headers in seen_elsewhere)
    for path in store.rglob("*"):
        assert path.is_dir() or value.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("text,mode,said", [
    (CANARY, 0o640, "chmod 600"),
    (CANARY, 0o604, "chmod 600"),
    ("no header at all", 0o600, "line 1"),
    (f"{CANARY}\nRange: bytes=0-1", 0o600, "line 2"),
    ("if-match: \"x\"", 0o600, "line 1"),
    ("Host: elsewhere", 0o600, "line 1"),
    ("X-Empty:   ", 0o600, "line 1"),
    ("X-Key: a\x01b", 0o600, "line 1"),
    ("X Y: a", 0o600, "line 1"),
], ids=ascii)
def test_a_header_file_that_will_not_do_is_refused(text, mode, said, refused, header_file,
                                                   ragged_job, tmp_path):
    line = refused(*ragged_job.extract(ragged_job.original / "model", tmp_path / "store"),
                   "--header-file", header_file(text, mode), exit_code=USAGE,
                   names=["--header-file", said])
    assert "canary" not in line


def test_a_header_file_that_is_not_there_is_refused(refused, ragged_job, tmp_path):
    for path in (tmp_path / "none", tmp_path):
        refused(*ragged_job.extract(ragged_job.original / "model", tmp_path / "store"),
                "--header-file", path, exit_code=USAGE, names=["no such file"])


@pytest.mark.parametrize("option,value", [
    ("--max-bandwidth", "0"), ("--max-bandwidth", "1kB"), ("--max-bandwidth", "fast"),
    ("--max-bandwidth", "-1MB"), ("--hedge-budget", "1"), ("--hedge-budget", "-1%"),
    ("--hedge-budget", "101%"), ("--hedge-budget", "%"), ("--hedge-budget", "1.2.3%"),
    ("--hedge-budget", "many")])
def test_values_that_make_no_sense_are_refused(option, value, refused, ragged_job, tmp_path):
    refused(*ragged_job.extract(ragged_job.original / "model", tmp_path / "store"),
            f"{option}={value}", exit_code=USAGE, names=[option])


def test_a_bandwidth_and_a_budget_change_no_byte(librarian, serve, ragged_job, ragged_digest,
                                                 tmp_path):
    from support import last_run
    server, store = serve(ragged_job.original), tmp_path / "store"
    librarian(*ragged_job.extract(server.url + MODEL, store), "--max-bandwidth", "2MB/s",
              "--hedge-budget", "0")
    run = last_run(store)
    assert run["store_digest"] == ragged_digest
    assert run["hedges"] == 0
