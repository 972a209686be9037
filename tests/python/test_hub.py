"""hf:// from end to end, on a hub that behaves as the real one does.

Goal: the store of the same model from a local directory, whatever the hub does; few questions to
it; one clear sentence where it refuses.
Method: scripted_hub.py, with the model pushed to it, and its record of what was asked of whom.
test_hub_links.py looks at signed links that end, test_hub_secrets.py at where tokens and signatures
go, test_hub_cache.py at models that are on this machine already.
"""

import json
import re
import shutil
import signal

import pytest

from fault_server import ALWAYS, Fault, reset, short_body, status
from range_server import text_response
from scripted_hub import rate_limited

USAGE, BAD_INPUT, REMOTE_FAILED = 2, 3, 6
NAME, MODEL = "org/tiny-llama", "hf://org/tiny-llama"
FILES = 3  # Weight files of the model.
WEIGHTS = "*.safetensors"


@pytest.fixture
def extract(hub, extract_right):
    """extract(options..., place=MODEL): run or resume the job from the hub; its store is right."""

    def run(*options, place=MODEL):
        extract_right(place, *options)

    return run


@pytest.fixture
def refuse(ragged_job, refused, memory_path):
    """refuse(place, names=[...]) -> the sentence of a job that ends at once."""

    def run(place=MODEL, names=(), exit_code=BAD_INPUT):
        return refused(*ragged_job.extract(place, memory_path / "store"), exit_code=exit_code,
                       names=names)

    return run


def commits_asked(hub):
    return {request.path.split("/resolve/")[1].split("/")[0] for request in hub.resolves()}


# What is asked of whom.


@pytest.mark.parametrize("place", [MODEL, MODEL + "@main", MODEL + "@{commit}", MODEL + "/"])
def test_a_model_on_the_hub_gives_the_bytes_of_its_directory(place, hub, extract, memory_path):
    commit = hub.repositories[NAME].branches["main"]
    extract(place=place.format(commit=commit))
    assert commits_asked(hub) == {commit}
    # Nothing else was asked than the commit, the files' places, and the files there.
    assert {request.path.split("/")[1] for request in hub.requests if request.origin == "hub"} <= {
        "api", "org"}
    assert {request.status for request in hub.requests} <= {200, 206, 302, 307, 404}
    absent = [request.path for request in hub.requests if request.status == 404]
    assert len(absent) == len(set(absent)), "asked twice for what is not there"


def test_each_weight_file_is_resolved_once_and_the_branch_once(hub, extract, ragged_job):
    # Goal: the hub counts these requests; a job of four parts asks for each file's place once.
    extract("--connections", 8)
    asked = [request.path for request in hub.resolves(WEIGHTS)]
    assert len(asked) == len(set(asked)) == FILES
    api = [r.path.split("/")[5] for r in hub.requests if r.path.startswith(f"/api/models/{NAME}")]
    assert api == ["revision", "tree"]
    assert len([r for r in hub.requests if r.origin == "cdn"]) > FILES * ragged_job.PART_COUNT


# The hub's list of files.


def pages_asked(hub):
    return [request for request in hub.requests if "/tree/" in request.path]


def test_a_list_of_many_pages_is_read_once(hub, extract, ragged_job):
    hub.page_entries = 2
    extract("--connections", 8)
    files = len(list((ragged_job.original / "model").iterdir()))
    assert len(pages_asked(hub)) == (files + 1) // 2
    assert len({request.query for request in pages_asked(hub)}) == len(pages_asked(hub))


def test_a_file_that_the_hub_lacks_is_named_before_any_is_asked_for(hub, refuse, ragged_job,
                                                                    tmp_path):
    shutil.copytree(ragged_job.original / "model", tmp_path / "model")
    lost = sorted((tmp_path / "model").glob(WEIGHTS))[-1]
    lost.unlink()
    hub.push(NAME, tmp_path / "model")
    refuse(names=[lost.name, "index"])
    assert hub.resolves(WEIGHTS) == []


@pytest.mark.parametrize("change", [
    status(404), status(405), status(501), status(401),
    lambda request, response, server: text_response(200, "<html>", "text/html"),
    lambda request, response, server: text_response(200, "[{}]", "application/json")],
    ids=["404", "405", "501", "401", "html", "no files"])
def test_a_mirror_without_a_list_will_do(change, hub, extract):
    hub.api.faults.append(Fault(change, path="*/tree/*", times=ALWAYS))
    extract()
    assert len(pages_asked(hub)) == 1


def lists(changed):
    """The hub's list, of whose weight files `changed` makes another entry."""

    def change(request, response, server):
        entries = json.loads(response.resource.read(0, response.resource.size))
        return text_response(200, json.dumps([changed(entry) if "lfs" in entry else entry
                                              for entry in entries]), "application/json")

    return change


@pytest.mark.parametrize("lfs", [{"size": 12}, {"oid": "0" * 64}], ids=["size", "sha256"])
def test_a_hub_that_lists_other_files_than_it_serves_is_not_believed(lfs, hub, refuse):
    change = lists(lambda entry: entry | {"lfs": entry["lfs"] | lfs})
    hub.api.faults.append(Fault(change, path="*/tree/*", times=ALWAYS))
    refuse(exit_code=REMOTE_FAILED, names=["lists", ".safetensors"])


def test_no_page_is_asked_of_another_origin(hub, extract):
    # Method: the first page's link leads to a stranger.
    stranger = hub.foreign_server("stranger")

    def change(request, response, server):
        response.headers["Link"] = (f"<{stranger.url}api/models/{NAME}/tree/x?cursor=abc>; "
                                    'rel="next"')
        return response

    hub.api.faults.append(Fault(change, path="*/tree/*"))
    extract()
    assert [request.origin for request in hub.requests if request.origin == "stranger"] == []


def test_no_request_lets_the_cdn_compress(hub, extract):
    # With gzip accepted the CDN ignores ranges and sends whole files.
    extract()
    assert {request.status for request in hub.requests if request.origin == "cdn"} == {206}


def test_a_plan_asks_for_no_weights(hub, librarian, ragged_job):
    arguments = ragged_job.extract(MODEL, "nowhere")
    out = arguments.index("--out")
    librarian("plan", *arguments[1:out], *arguments[out + 2 :])
    assert len(hub.resolves(WEIGHTS)) == FILES
    assert len([request for request in hub.requests if request.origin == "cdn"]) == FILES


def test_a_branch_with_slashes_is_asked_for_as_one_name(hub, extract, ragged_job):
    hub.push(NAME, ragged_job.replacement / "model")
    commit = hub.push(NAME, ragged_job.original / "model", branch="refs/pr/7")
    extract(place=MODEL + "@refs/pr/7")
    assert commits_asked(hub) == {commit}


def test_a_model_that_was_renamed_is_found(hub, extract):
    hub.rename(NAME, "org/renamed")
    extract()


# One commit for the whole job.


def moves_the_branch(folder):
    """The honest answer, and a push of another model at the same moment."""

    def change(request, response, server):
        server.hub.push(NAME, folder)
        return response

    return change


@pytest.mark.parametrize("where", ["*/revision/main", "*/config.json", WEIGHTS])
def test_a_push_during_the_job_changes_nothing(where, hub, extract, ragged_job):
    commit = hub.repositories[NAME].branches["main"]
    hub.api.faults.append(Fault(moves_the_branch(ragged_job.replacement / "model"), path=where))
    extract()
    assert hub.repositories[NAME].branches["main"] != commit
    assert commits_asked(hub) == {commit}


def killed_inside_part_0(program):
    assert program.wait_for("layer_done", 3), program.stderr
    program.end(signal.SIGKILL)


def killed_before_the_first_layer(program):
    assert program.wait_for("layer_done", 1), program.stderr
    program.end(signal.SIGKILL)


@pytest.mark.parametrize("killed", [killed_before_the_first_layer, killed_inside_part_0])
@pytest.mark.parametrize("place", [MODEL, MODEL + "@main"])
def test_a_job_that_is_resumed_keeps_its_commit(place, killed, hub, extract, start, ragged_job,
                                                memory_path):
    commit = hub.repositories[NAME].branches["main"]
    killed(start(*ragged_job.extract(place, memory_path / "store")))
    hub.push(NAME, ragged_job.replacement / "model")
    extract(place=place)
    assert commits_asked(hub) == {commit}


def test_parts_of_two_commits_never_stand_in_one_store(hub, extract, ragged_job, librarian,
                                                       memory_path):
    # Method: a part of a complete store is lost when the branch has moved.
    commit = hub.repositories[NAME].branches["main"]
    extract()
    shutil.rmtree(memory_path / "store/part-00002")
    hub.push(NAME, ragged_job.replacement / "model")
    done = librarian(*ragged_job.extract(MODEL, memory_path / "store"), exit_code=None)
    assert done.returncode in (0, REMOTE_FAILED), done.stderr
    weights = {path.read_bytes() for path in (memory_path / "store").glob("part-*/weights.json")
               if (path.parent / "zarr.json").exists()}
    assert len(weights) == 1
    hub.repositories[NAME].branches["main"] = commit
    extract()


def test_a_commit_that_is_named_is_read_though_the_branch_moved(hub, extract, ragged_job):
    commit = hub.repositories[NAME].branches["main"]
    hub.push(NAME, ragged_job.replacement / "model")
    extract(place=f"{MODEL}@{commit}")
    assert commits_asked(hub) == {commit}


def test_a_hub_that_answers_for_another_commit_is_not_believed(hub, refuse):
    def change(request, response, server):
        response.headers["X-Repo-Commit"] = "0123456789abcdef" * 2 + "01234567"
        return response

    hub.api.faults.append(Fault(change, path=WEIGHTS, times=ALWAYS))
    refuse(exit_code=REMOTE_FAILED, names=["commit", ".safetensors"])


# What the hub refuses.


def test_a_gated_model_is_explained(hub, refuse):
    hub.gate(NAME)
    line = refuse(names=[f"{hub.endpoint}/{NAME}", "HF_TOKEN"])
    assert re.search("licen[cs]e", line), line


def test_a_gated_model_that_the_token_does_not_open_is_explained(hub, refuse, monkeypatch):
    hub.gate(NAME)
    hub.add_token("hf_stranger")
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    line = refuse(names=[f"{hub.endpoint}/{NAME}"])
    assert re.search("licen[cs]e", line) and "hf_stranger" not in line, line


@pytest.mark.parametrize("access", ["public", "gated", "private"])
def test_a_token_that_the_hub_does_not_know_is_explained(access, hub, refuse, monkeypatch):
    # The real hub, too, refuses it for public models.
    hub.repositories[NAME].access = access
    monkeypatch.setenv("HF_TOKEN", "hf_mistyped")
    assert "hf_mistyped" not in refuse(names=["HF_TOKEN", "token"])


@pytest.mark.parametrize("token", [None, "hf_stranger"])
@pytest.mark.parametrize("missing", ["private", "absent"])
def test_a_model_that_is_not_there_or_private_is_named(missing, token, hub, refuse, monkeypatch):
    hub.add_token("hf_stranger")
    hub.hide(NAME)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    name = NAME if missing == "private" else "org/none"
    refuse(f"hf://{name}", names=[name, "HF_TOKEN"])


@pytest.mark.parametrize("revision", ["none", "a/b", "0123456789" * 4, "0123456"])
def test_a_revision_that_is_not_there_is_named(revision, hub, refuse):
    refuse(f"{MODEL}@{revision}", names=[revision, NAME])


def test_a_model_without_a_config_is_refused_by_the_files_name(hub, refuse, tmp_path):
    (tmp_path / "README.md").write_text("nothing else")
    hub.push("org/empty", tmp_path)
    refuse("hf://org/empty", names=["config.json", "org/empty"])


@pytest.mark.parametrize("place", ["hf://", "hf:///name", "hf://org/name/file.json",
                                   "hf://org/na me", "hf://org/../name", "hf://org/name@",
                                   "hf://org/name@../main", "hf://org/name@a\nb", "hf://a/b/c@main",
                                   "hf://user:pw@org/name", "hf://org/name?x=1"], ids=ascii)
def test_a_place_that_is_no_model_is_refused_before_anything_is_asked(place, hub, refuse):
    line = refuse(place, exit_code=USAGE)
    assert "hf://" in line
    assert hub.requests == []


@pytest.mark.parametrize("endpoint", ["ftp://hub", "not a url", "http://192.0.2.1", "file:///etc",
                                      "http://user:pw@127.0.0.1:1", "http://127.0.0.1:1/?q=1"])
def test_an_endpoint_that_cannot_be_used_is_refused(endpoint, hub, refuse, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    refuse(exit_code=USAGE)


# Tokens are found where the public client finds them.


def token_in_the_environment(monkeypatch, folder):
    monkeypatch.setenv("HF_TOKEN", "hf_member\n")


def token_in_a_file(monkeypatch, folder):
    (folder / "secret").write_text("hf_member\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(folder / "secret"))


def token_in_the_hubs_home(monkeypatch, folder):
    (folder / "home").mkdir()
    (folder / "home/token").write_text("hf_member")
    monkeypatch.setenv("HF_HOME", str(folder / "home"))


def token_in_the_users_home(monkeypatch, folder):
    (folder / "user/.cache/huggingface").mkdir(parents=True)
    (folder / "user/.cache/huggingface/token").write_text("hf_member")
    monkeypatch.setenv("HOME", str(folder / "user"))
    monkeypatch.delenv("HF_HOME")


@pytest.mark.parametrize("place_token", [token_in_the_environment, token_in_a_file,
                                         token_in_the_hubs_home, token_in_the_users_home])
@pytest.mark.parametrize("access", ["gated", "private"])
def test_a_token_opens_the_model(access, place_token, hub, extract, monkeypatch, tmp_path):
    hub.add_token("hf_member", NAME)
    hub.repositories[NAME].access = access
    place_token(monkeypatch, tmp_path)
    extract()


@pytest.mark.parametrize("token", ["hf_a\nX-Evil: 1", "hf a", "hf_\x01", "hf_\N{SNOWMAN}"],
                         ids=ascii)
def test_a_token_that_no_header_can_carry_is_refused_unseen(token, hub, refuse, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    line = refuse(names=["HF_TOKEN"], exit_code=USAGE)
    assert token not in line and "Evil" not in line
    assert hub.requests == []


# What the hub does now and then.


@pytest.mark.parametrize("path,change", [
    pytest.param("/api/models/*", rate_limited(1), id="of the API"),
    pytest.param(WEIGHTS, rate_limited(1), id="of the resolver"),
    pytest.param(WEIGHTS, rate_limited(1, retry_after=False), id="in the hub's header alone")])
def test_the_hubs_wish_to_wait_is_kept(path, change, hub, extract):
    hub.api.faults.append(Fault(change, path=path))
    extract()
    requests = [request for request in hub.requests if request.origin == "hub"]
    (at,) = [i for i, request in enumerate(requests) if request.status == 429]
    # Others may have been under way; the one that was refused comes again a second later.
    again = next(r for r in requests[at + 1 :] if r.path == requests[at].path)
    assert again.arrival - requests[at].arrival >= 0.9


REPAIRED = {
    "a hub that is away": ("api", lambda: Fault(status(502), path="*", times=2)),
    "no answer from the resolver": ("api", lambda: Fault(status(504), path="*/resolve/*")),
    "a reset of the resolver": ("api", lambda: Fault(reset(0), path="*/resolve/*")),
    "a CDN that is busy": ("cdn", lambda: Fault(status(503), times=2)),
    "a CDN that resets": ("cdn", lambda: Fault(reset(100), skip=FILES, times=3)),
    "a CDN that ends early": ("cdn", lambda: Fault(short_body(100), skip=FILES, times=3)),
    "a short answer about the revision": ("api", lambda: Fault(short_body(20), path="/api/*")),
}


@pytest.mark.parametrize("name", REPAIRED)
def test_a_hub_that_recovers_costs_nothing_but_time(name, hub, extract):
    server, fault = REPAIRED[name][0], REPAIRED[name][1]()
    getattr(hub, server).faults.append(fault)
    extract()
    assert fault.struck > 0


def test_a_failure_of_the_cdn_costs_no_new_question_to_the_hub(hub, extract):
    hub.cdn.faults.append(Fault(reset(100), skip=FILES, times=5))
    extract()
    assert len(hub.resolves(WEIGHTS)) == FILES


def small_files_whole(request, response, server):
    """The hub's own files without ranges."""
    if response.resource is not None and response.status == 206:
        response.headers.pop("Content-Range")
        response.status, response.begin, response.end = 200, 0, response.resource.size
    return response


def test_small_files_may_come_whole(hub, extract):
    hub.api.faults.append(Fault(small_files_whole, path="/api/resolve-cache/*", times=ALWAYS))
    extract()


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"sha": 1}', b'{"sha": "main"}',
                                    b'{"sha": "../../../etc/passwd"}', b"<html>", b'{"sha": "' +
                                    b"g" * 40 + b'"}', b"[" * 100_000], ids=lambda a: a[:24])
def test_an_answer_that_names_no_commit_is_refused(answer, hub, refuse):
    hub.api.faults.append(Fault(lambda request, response, server: text_response(
        200, answer.decode(), "application/json"), path="/api/*", times=ALWAYS))
    refuse(names=[NAME])
    assert hub.resolves() == []
