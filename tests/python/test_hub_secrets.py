"""Tokens and signed links reach nobody who should not have them.

Goal: the token is sent to the hub's own origin and to no other, however a server redirects; neither
it nor a signature is in anything that the program writes or prints; no core file holds them.
Method: a token that occurs nowhere else, servers that record every header, and a search of every
byte that the run left.
"""

import concurrent.futures
import os
import resource
import secrets
import signal
import subprocess
import threading
import urllib.parse

import pytest

from fault_server import ALWAYS, Fault, status
from range_server import text_response
from scripted_hub import ScriptedHub

BAD_INPUT, REMOTE_FAILED = 3, 6
NAME, MODEL = "org/tiny-llama", "hf://org/tiny-llama"
WEIGHTS = "*.safetensors"
QUERY = "X-Amz-Signature=canary0of0a0query"  # On every address that a redirect names.


def new_token(hub):
    token = "hf_" + secrets.token_hex(16)
    hub.add_token(token, NAME)
    return token


@pytest.fixture
def token(hub, monkeypatch):
    """A token that the hub knows; no other text of the run contains it."""
    token = new_token(hub)
    monkeypatch.setenv("HF_TOKEN", token)
    return token


def canaries(hub, token):
    """Whatever must not be written: the token, and what makes signed links good."""
    found = {token, QUERY.partition("=")[2]}
    for request in hub.requests:
        query = dict(urllib.parse.parse_qsl(request.query))
        found |= {query[name] for name in ("Signature", "Policy") if name in query}
    return found


def assert_nothing_is_written(found, done, *folders):
    texts = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    for folder in folders:
        texts |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name, text in texts.items():
        for canary in found:
            assert canary.encode() not in text, f"{canary} is in {name}"
        assert b"Signature=" not in text, name


def assert_only_the_hub_has_the_token(hub, token):
    """The origin is what the client asked for: scheme, host and port."""
    holders = {(request.origin, request.host) for request in hub.requests
               if token in str(request.headers) + request.query + request.path}
    # The hub has it, else the search would find nothing anywhere.
    assert holders == {("hub", urllib.parse.urlsplit(hub.endpoint).netloc)}


def redirect(make_location, code=302):
    """To make_location(request, hub); a request that comes back from there is answered."""

    def change(request, response, server):
        location = make_location(request, server.hub)
        if request.query.startswith(QUERY):
            return response
        headers = {"Location": f"{location}?{QUERY}"}
        if "X-Repo-Commit" in response.headers:
            headers["X-Repo-Commit"] = response.headers["X-Repo-Commit"]
        return text_response(code, "elsewhere", headers=headers)

    return change


def foreign(hub):
    return hub.foreign.url.rstrip("/")


def file_of(request):
    return "/" + request.path.rpartition("/")[2]


# Where the resolver sends a weight file: {name: (location, exit codes)}.

SHAPES = {
    "another host": (lambda r, hub: foreign(hub) + file_of(r), {0}),
    "another port": (lambda r, hub: hub.other_port.url.rstrip("/") + file_of(r), {0}),
    "another name of the same machine": (
        lambda r, hub: f"http://localhost:{hub.api.port}{r.path}", {0, BAD_INPUT}),
    "a name below the hub's": (
        lambda r, hub: f"http://hub.localhost:{hub.api.port}{r.path}", {0, BAD_INPUT}),
    "the hub's address in front of another": (
        lambda r, hub: f"http://127.0.0.1.localhost:{hub.other_port.port}{file_of(r)}",
        {0, BAD_INPUT}),
    "no scheme": (lambda r, hub: foreign(hub).removeprefix("http:") + file_of(r), {0}),
    "a path of the hub": (lambda r, hub: r.path, {0}),
    "a user that looks like the hub": (
        lambda r, hub: f"http://{hub.endpoint.removeprefix('http://')}@127.0.0.3:"
                       f"{hub.foreign.port}{file_of(r)}", {BAD_INPUT}),
    "a backslash": (
        lambda r, hub: f"{hub.endpoint}\\@127.0.0.3:{hub.foreign.port}{file_of(r)}",
        {BAD_INPUT, REMOTE_FAILED}),
    "two slashes": (lambda r, hub: f"/\\127.0.0.3:{hub.foreign.port}{file_of(r)}",
                    {BAD_INPUT, REMOTE_FAILED}),
    "a file": (lambda r, hub: "file:///etc/hostname", {BAD_INPUT}),
    "another protocol": (lambda r, hub: f"ftp://127.0.0.3:{hub.foreign.port}/", {BAD_INPUT}),
    "away and back": (lambda r, hub: f"{foreign(hub)}/back{r.path}", {0, BAD_INPUT}),
}


@pytest.fixture
def elsewhere(hub):
    """Two more origins; the first sends /back/PATH to the hub's PATH."""
    hub.foreign = hub.foreign_server("foreign")
    hub.other_port = hub.foreign_server("other port", bind="127.0.0.1")
    hub.foreign.faults.append(Fault(lambda request, response, server: text_response(
        302, "back", headers={"Location": hub.endpoint + request.path.removeprefix("/back") +
                              f"?{QUERY}"}), path="/back/*", times=ALWAYS))


def run(job, librarian, store, *options):
    """One run that may fail, in time."""
    return librarian(*job.extract(MODEL, store, "--insecure-http", *options), exit_code=None)


@pytest.mark.parametrize("name", SHAPES)
def test_a_redirect_takes_the_token_nowhere(name, hub, elsewhere, token, ragged_job, librarian,
                                            memory_path):
    location, codes = SHAPES[name]
    hub.api.faults.append(Fault(redirect(location), path=f"*/resolve/{WEIGHTS}", times=ALWAYS))
    done = run(ragged_job, librarian, memory_path / "store", "--json")
    assert done.returncode in codes, done.stderr
    assert hub.api.faults[0].struck > 0
    assert_only_the_hub_has_the_token(hub, token)
    assert_nothing_is_written(canaries(hub, token), done, memory_path)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("path", ["/api/models/*", "*/config.json", "*.index.json"])
def test_no_kind_of_redirect_of_a_document_takes_the_token_along(
        path, code, hub, elsewhere, token, ragged_job, librarian, memory_path):
    hub.api.faults.append(Fault(redirect(lambda r, hub: foreign(hub) + file_of(r), code),
                                path=path, times=ALWAYS))
    done = run(ragged_job, librarian, memory_path / "store")
    assert any(request.origin == "foreign" for request in hub.requests) or done.returncode != 0
    assert_only_the_hub_has_the_token(hub, token)
    assert_nothing_is_written(canaries(hub, token), done, memory_path)


def test_a_redirect_to_itself_ends(hub, token, ragged_job, librarian, memory_path):
    hub.api.faults.append(Fault(lambda request, response, server: text_response(
        302, "again", headers={"Location": f"{request.path}?{QUERY}"}), path="*.index.json",
        times=ALWAYS))
    done = run(ragged_job, librarian, memory_path / "store")
    assert done.returncode == BAD_INPUT and "redirect" in done.stderr
    assert hub.api.faults[0].struck <= 6
    assert_only_the_hub_has_the_token(hub, token)
    assert_nothing_is_written(canaries(hub, token), done, memory_path)


def test_the_cdn_may_send_us_on_but_not_with_the_token(hub, elsewhere, token, ragged_job,
                                                       librarian, memory_path):
    hub.cdn.faults.append(Fault(lambda request, response, server: text_response(
        302, "on", headers={"Location": f"{foreign(hub)}{request.path}?{QUERY}"}), times=ALWAYS))
    done = run(ragged_job, librarian, memory_path / "store")
    assert done.returncode == 0, done.stderr
    assert any(request.origin == "foreign" for request in hub.requests)
    assert_only_the_hub_has_the_token(hub, token)
    assert_nothing_is_written(canaries(hub, token), done, memory_path)


# Other schemes.


def test_https_elsewhere_gets_no_token(hub, token, authority, trusting, ragged_job, memory_path):
    # Method: the same host, a certificate that is trusted: only the scheme and port differ.
    tls = authority.issue("127.0.0.1").context()
    secure = hub.foreign_server("secure", bind="127.0.0.1", tls=tls)
    hub.api.faults.append(Fault(redirect(lambda r, hub: secure.url.rstrip("/") + file_of(r)),
                                path=f"*/resolve/{WEIGHTS}", times=ALWAYS))
    done = trusting(*ragged_job.extract(MODEL, memory_path / "store"))
    assert done.returncode == 0, done.stderr
    assert any(request.origin == "secure" for request in hub.requests)
    assert_only_the_hub_has_the_token(hub, token)
    assert_nothing_is_written(canaries(hub, token), done, memory_path)


@pytest.mark.parametrize("where", ["elsewhere", "the same address"])
def test_a_hub_on_https_sends_nobody_to_plain_http(where, hub, authority, trusting, ragged_job,
                                                   memory_path, monkeypatch):
    with ScriptedHub(tls=authority.issue("127.0.0.1", "127.0.0.2").context()) as secure:
        monkeypatch.setenv("HF_ENDPOINT", secure.endpoint)
        secure.push(NAME, ragged_job.original / "model")
        token = new_token(secure)
        monkeypatch.setenv("HF_TOKEN", token)
        done = trusting(*ragged_job.extract(MODEL, memory_path / "good"))
        assert done.returncode == 0, done.stderr

        plain = secure.foreign_server("plain", bind="127.0.0.1")
        base = (plain.url.rstrip("/") if where == "elsewhere"
                else secure.endpoint.replace("https", "http"))
        secure.api.faults.append(Fault(redirect(lambda r, hub: base + file_of(r)),
                                       path=f"*/resolve/{WEIGHTS}", times=ALWAYS))
        done = trusting(*ragged_job.extract(MODEL, memory_path / "bad"))
        assert done.returncode == BAD_INPUT and "plain http" in done.stderr
        assert not any(request.origin == "plain" for request in secure.requests)
        assert_only_the_hub_has_the_token(secure, token)
        assert_nothing_is_written(canaries(secure, token), done, memory_path)


# Whatever is printed and written.


def failing(server, change, path=WEIGHTS, skip=0):
    def prepare(hub):
        getattr(hub, server).faults.append(Fault(change, path=path, skip=skip, times=ALWAYS))
    return prepare


def repeating(code, headers=()):
    """An error that shows the request, as a careless server does."""
    def change(request, response, server):
        seen = f"{request.path} {request.query} {dict(request.headers)}"
        return text_response(code, seen, headers={name: seen for name in headers})
    return change


def larger_by_one(request, response, server):
    response.headers["X-Linked-Size"] = str(int(response.headers["X-Linked-Size"]) + 1)
    return response


ENDS = {  # How the hub fails, exit codes, and a word of what is said then.
    "it does not": (lambda hub: None, {0}, ""),
    "the CDN refuses": (failing("cdn", status(404), "*"), {BAD_INPUT, REMOTE_FAILED},
                        "not there"),
    "the CDN refuses later": (failing("cdn", status(403), "*", 5), {BAD_INPUT, REMOTE_FAILED},
                              "403"),
    "the CDN repeats what it got": (failing("cdn", repeating(400), "*"),
                                    {BAD_INPUT, REMOTE_FAILED}, "400"),
    "the hub repeats what it got": (
        failing("api", repeating(404, ["X-Error-Message", "X-Error-Code"]), "*.json"), {BAD_INPUT},
        "not there"),
    "the API repeats what it got": (failing("api", repeating(401, ["X-Error-Message"]), "/api/*"),
                                    {BAD_INPUT}, "HF_TOKEN"),
    "the token for a commit": (failing("api", lambda request, response, server: text_response(
        200, '{"sha": "%s"}' % request.headers.get("Authorization")), "/api/*"), {BAD_INPUT},
        "commit"),
    "links that are never good": (lambda hub: setattr(hub.links, "seconds", -10),
                                  {BAD_INPUT, REMOTE_FAILED}, "403"),
    "the size of a file is another": (failing("api", larger_by_one), {BAD_INPUT, REMOTE_FAILED},
                                      "bytes"),
    "a redirect to what is no place": (failing("cdn", status(302, location=f"gopher://x?{QUERY}"),
                                               "*"), {BAD_INPUT}, "redirect"),
}


def test_no_secret_is_in_anything_that_is_said_or_written(ragged_job, librarian, memory_path):
    # Method: side by side, because what never gets better costs the program's whole patience.
    def end(name, options):
        prepare, codes, word = ENDS[name]
        folder = memory_path / f"{name} {options}".replace(" ", "_")
        folder.mkdir()
        with ScriptedHub() as hub:
            hub.push(NAME, ragged_job.original / "model")
            token = new_token(hub)
            prepare(hub)
            done = librarian(*ragged_job.extract(MODEL, folder / "store", *options), exit_code=None,
                             env=os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": token,
                                               "HF_HOME": str(folder)})
            assert done.returncode in codes and word in done.stderr, (name, done.stderr)
            # A question that is answered again and again is asked again, but not for ever.
            assert len(hub.requests) < 200, name
            assert_only_the_hub_has_the_token(hub, token)
            assert_nothing_is_written(canaries(hub, token), done, folder)

    runs = [(name, ["--json"] * (i % 2)) for i, name in enumerate(ENDS)] + [("it does not",
                                                                           ["--json"])]
    with concurrent.futures.ThreadPoolExecutor(len(runs)) as threads:
        for ended in [threads.submit(end, *run) for run in runs]:
            ended.result()


def test_no_secret_is_left_by_a_kill(hub, token, ragged_job, start, memory_path):
    # Goal: the journal and the scratch of a part that is not finished are searched as well.
    program = start(*ragged_job.extract(MODEL, memory_path / "store", "--state", "disk"))
    assert program.wait_for("layer_done", 3), program.stderr
    program.end(signal.SIGKILL)
    assert list((memory_path / "store").glob("part-*/.journal"))
    found = canaries(hub, token)
    for path in (path for path in memory_path.rglob("*") if path.is_file()):
        for canary in found:
            assert canary.encode() not in path.read_bytes(), path


# Core files.


def dies_with_a_core(command, folder, ready):
    """Whether the kernel writes a core file when SIGSEGV meets the program, once it is ready().

    The limits that it is started with allow any core.
    """
    def allow():
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)

    process = subprocess.Popen(list(map(str, command)), cwd=folder, preexec_fn=allow,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ready()
    os.kill(process.pid, signal.SIGSEGV)
    _, ended = os.waitpid(process.pid, 0)
    process.returncode = ended
    assert os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGSEGV, ended
    return os.WCOREDUMP(ended)


def test_no_core_file_is_written(hub, token, ragged_job, librarian_binary, memory_path):
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY:
        pytest.skip("core files are forbidden here")
    if not dies_with_a_core(["sleep", "60"], memory_path, lambda: None):
        pytest.skip("this kernel writes no core files here")
    # Method: the signal comes when the program has the token, and a CDN that says nothing.
    asked = threading.Event()

    def say_nothing(request, response, server):
        asked.set()
        server.stopping.wait()
        return response

    hub.cdn.faults.append(Fault(say_nothing, times=ALWAYS))
    command = [librarian_binary, *ragged_job.extract(MODEL, memory_path / "store")]
    assert not dies_with_a_core(command, memory_path, lambda: asked.wait(60))
    assert asked.is_set()
    assert_only_the_hub_has_the_token(hub, token)
