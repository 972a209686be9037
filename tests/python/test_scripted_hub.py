"""The scripted hub is what it says, seen by a plain client that follows nothing by itself."""

import hashlib
import http.client
import json
import urllib.parse

import pytest

from fault_server import Fault
from hub_content import git_blob_sha1, write_cache
from scripted_hub import ScriptedHub, rate_limited

CONFIG, WEIGHTS = b'{"model_type": "llama"}', bytes(range(251)) * 40
NAME = "org/name"


@pytest.fixture
def hub():
    with ScriptedHub(page_entries=2) as hub:
        yield hub


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model/extra").mkdir(parents=True)
    (tmp_path / "model/config.json").write_bytes(CONFIG)
    (tmp_path / "model/model.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "model/extra/note.txt").write_text("a note")
    return tmp_path / "model"


@pytest.fixture
def commit(hub, folder):
    return hub.push(NAME, folder)


def ask(url, method="GET", **headers):
    """(response, body) of one request; a redirect is an answer like any other."""
    target = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(target.hostname, target.port, timeout=10)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, f"{target.path}?{target.query}" if target.query else target.path,
                       headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def signed_link(hub, commit):
    response, _ = ask(f"{hub.endpoint}/{NAME}/resolve/{commit}/model.safetensors")
    assert response.status == 302
    return response.headers["Location"]


@pytest.mark.parametrize("path", ["", "/revision/main", "/revision/{commit}"])
def test_a_revision_is_resolved_to_its_commit(path, hub, commit):
    response, body = ask(f"{hub.endpoint}/api/models/{NAME}" + path.format(commit=commit))
    document = json.loads(body)
    assert (response.status, document["sha"], document["id"]) == (200, commit, NAME)
    assert {"rfilename": "config.json"} in document["siblings"]


def test_a_push_moves_the_branch_and_keeps_the_commit(hub, folder, commit):
    (folder / "config.json").write_bytes(b"{}")
    later = hub.push(NAME, folder)
    assert later != commit
    assert json.loads(ask(f"{hub.endpoint}/api/models/{NAME}/revision/main")[1])["sha"] == later
    for revision, data in [(commit, CONFIG), (later, b"{}"), ("main", b"{}")]:
        redirect, _ = ask(f"{hub.endpoint}/{NAME}/resolve/{revision}/config.json")
        assert ask(hub.endpoint + redirect.headers["Location"])[1] == data


def test_a_branch_may_have_slashes(hub, folder):
    commit = hub.push(NAME, folder, branch="refs/pr/1")
    revision = urllib.parse.quote("refs/pr/1", safe="")
    info = json.loads(ask(f"{hub.endpoint}/api/models/{NAME}/revision/{revision}")[1])
    assert info["sha"] == commit
    response, _ = ask(f"{hub.endpoint}/{NAME}/resolve/{revision}/config.json")
    assert response.headers["X-Repo-Commit"] == commit


def test_the_tree_comes_in_pages_that_link_to_the_next(hub, commit):
    url, entries, pages = f"{hub.endpoint}/api/models/{NAME}/tree/{commit}?recursive=true", [], 0
    while url:
        response, body = ask(url)
        entries += json.loads(body)
        pages += 1
        link = response.headers["Link"]
        assert link is None or link.endswith('>; rel="next"')
        url = link and link[1 : link.index(">")]
    assert pages == 2
    assert [entry["path"] for entry in entries] == ["config.json", "extra", "extra/note.txt",
                                                    "model.safetensors"]
    assert entries[0]["oid"] == git_blob_sha1(CONFIG) and "lfs" not in entries[0]
    assert entries[1]["type"] == "directory"
    assert entries[3]["lfs"]["oid"] == hashlib.sha256(WEIGHTS).hexdigest() != entries[3]["oid"]
    assert entries[3]["size"] == entries[3]["lfs"]["size"] == len(WEIGHTS)


def test_a_small_file_is_redirected_within_the_hub(hub, commit):
    response, _ = ask(f"{hub.endpoint}/{NAME}/resolve/main/config.json")
    assert response.status == 307
    assert response.headers["X-Repo-Commit"] == commit
    location = response.headers["Location"]
    assert location.startswith(f"/api/resolve-cache/models/{NAME}/{commit}/config.json?")
    response, body = ask(hub.endpoint + location, Range="bytes=1-3")
    assert (response.status, body) == (206, CONFIG[1:4])
    assert response.headers["ETag"] == f'"{git_blob_sha1(CONFIG)}"'


def test_git_gives_the_small_files_name():
    # Known from any git: the empty blob.
    assert git_blob_sha1(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_a_weight_file_is_redirected_to_a_signed_link_on_another_origin(hub, commit):
    response, _ = ask(f"{hub.endpoint}/{NAME}/resolve/main/model.safetensors", Range="bytes=0-9")
    assert response.status == 302
    assert response.headers["X-Linked-Etag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert response.headers["X-Linked-Size"] == str(len(WEIGHTS))
    assert (response.headers["X-Repo-Commit"], response.headers["Accept-Ranges"]) == (commit,
                                                                                      "bytes")
    link = response.headers["Location"]
    assert link.startswith(hub.cdn.url) and not link.startswith(hub.endpoint)
    response, body = ask(link, Range="bytes=100-199")
    assert (response.status, body) == (206, WEIGHTS[100:200])
    assert response.headers["Content-Range"] == f"bytes 100-199/{len(WEIGHTS)}"
    assert hashlib.sha256(WEIGHTS).hexdigest() not in response.headers["ETag"] + link


def test_who_accepts_gzip_gets_the_whole_file(hub, commit):
    link = signed_link(hub, commit)
    response, body = ask(link, Range="bytes=100-199", Accept_Encoding="gzip, deflate")
    assert (response.status, body) == (200, WEIGHTS)
    response, body = ask(link, Range="bytes=100-199", Accept_Encoding="identity")
    assert (response.status, body) == (206, WEIGHTS[100:200])


def changed_signature(link):
    at = link.index("Signature=") + len("Signature=")
    return link[:at] + ("A" if link[at] != "A" else "B") + link[at + 1 :]


def later_expiry(link):
    expires = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(link).query))["Expires"]
    return link.replace(f"Expires={expires}", f"Expires={int(expires) + 1000}")


@pytest.mark.parametrize("change", [changed_signature, later_expiry,
                                    lambda link: link.partition("?")[0]],
                         ids=["changed", "prolonged", "missing"])
def test_a_wrong_signature_is_refused_in_xml(change, hub, commit):
    link = signed_link(hub, commit)
    response, body = ask(change(link))
    assert response.status == 403 and b"<Code>AccessDenied</Code>" in body
    assert ask(link)[0].status == 200


def test_links_expire_by_their_time_and_all_at_once(hub, commit):
    link = signed_link(hub, commit)
    hub.links.expire_all()
    assert ask(link)[0].status == 403
    assert ask(signed_link(hub, commit))[0].status == 200
    hub.links.seconds = -1
    assert ask(signed_link(hub, commit))[0].status == 403


@pytest.mark.parametrize("path,code,error", [
    (f"/api/models/{NAME}/revision/none", 404, "RevisionNotFound"),
    (f"/api/models/{NAME}/tree/none", 404, "RevisionNotFound"),
    (f"/{NAME}/resolve/none/config.json", 404, "RevisionNotFound"),
    (f"/{NAME}/resolve/main/none.json", 404, "EntryNotFound"),
    ("/api/models/org/none/revision/main", 401, "RepoNotFound"),
    ("/org/none/resolve/main/config.json", 401, "RepoNotFound"),
])
def test_what_is_not_there_is_refused_by_a_code(path, code, error, hub, commit):
    response, body = ask(hub.endpoint + path)
    assert (response.status, response.headers["X-Error-Code"]) == (code, error)
    assert json.loads(body)["error"] == response.headers["X-Error-Message"]


CALLERS = {"nobody": None, "a stranger": "hf_stranger", "a member": "hf_member", "a liar": "hf_no"}


@pytest.mark.parametrize("caller,access,answers", [
    ("nobody", "gated", (200, 401, "GatedRepo")),
    ("a stranger", "gated", (200, 403, "GatedRepo")),
    ("a member", "gated", (200, 302, None)),
    ("a liar", "gated", (401, 401, None)),
    ("nobody", "private", (401, 401, "RepoNotFound")),
    ("a stranger", "private", (404, 404, "RepoNotFound")),
    ("a member", "private", (200, 302, None)),
    ("a liar", "public", (401, 401, None)),
    ("nobody", "public", (200, 302, None)),
])
def test_access_depends_on_the_token(caller, access, answers, hub, commit):
    hub.add_token("hf_stranger")
    hub.add_token("hf_member", NAME)
    hub.repositories[NAME].access = access
    headers = {"Authorization": f"Bearer {CALLERS[caller]}"} if CALLERS[caller] else {}
    info, _ = ask(f"{hub.endpoint}/api/models/{NAME}/revision/main", **headers)
    file, _ = ask(f"{hub.endpoint}/{NAME}/resolve/main/model.safetensors", **headers)
    assert (info.status, file.status, file.headers["X-Error-Code"]) == answers


def test_an_old_name_redirects_to_the_new_one(hub, commit):
    hub.rename(NAME, "org/renamed")
    for path in ("/api/models/{}/revision/main", "/{}/resolve/main/config.json"):
        response, _ = ask(hub.endpoint + path.format(NAME))
        assert response.status == 307
        assert response.headers["Location"] == path.format("org/renamed")


def test_too_many_requests_are_answered_with_the_time_to_wait(hub, commit):
    hub.api.faults += [Fault(rate_limited(1), path="*/resolve/*"),
                       Fault(rate_limited(2, retry_after=False), path="*/resolve/*")]
    url = f"{hub.endpoint}/{NAME}/resolve/main/config.json"
    for wait, header in [(1, "1"), (2, None)]:
        response, _ = ask(url)
        assert response.status == 429
        assert response.headers["RateLimit"] == f'"resolvers";r=0;t={wait}'
        assert response.headers["Retry-After"] == header
    response, _ = ask(url)
    assert response.status == 307
    assert response.headers["RateLimit"].startswith('"resolvers";r=')


def test_every_request_is_recorded_with_its_origin_and_headers(hub, commit):
    foreign = hub.foreign_server("elsewhere")
    ask(signed_link(hub, commit), Range="bytes=0-0", Authorization="Bearer hf_canary")
    assert ask(foreign.url + "model.safetensors", Cookie="secret")[1] == WEIGHTS
    resolve, cdn, elsewhere = hub.requests
    assert [(r.origin, r.status) for r in hub.requests] == [("hub", 302), ("cdn", 206),
                                                            ("elsewhere", 200)]
    assert resolve.path == f"/{NAME}/resolve/{commit}/model.safetensors"
    assert cdn.headers["authorization"] == "Bearer hf_canary" and "Signature=" in cdn.query
    assert elsewhere.headers["cookie"] == "secret"
    assert elsewhere.host == f"127.0.0.3:{foreign.port}"
    assert len({resolve.host, cdn.host, elsewhere.host}) == 3


def test_the_cache_is_laid_out_as_the_public_client_leaves_it(hub, commit, tmp_path):
    snapshot = write_cache(tmp_path / "cache", hub.repositories[NAME], commit)
    root = tmp_path / "cache/models--org--name"
    assert snapshot == root / "snapshots" / commit
    assert (root / "refs/main").read_text() == commit
    for path, data in [("config.json", CONFIG), ("model.safetensors", WEIGHTS),
                       ("extra/note.txt", b"a note")]:
        assert (snapshot / path).is_symlink() and (snapshot / path).read_bytes() == data
    assert (root / "blobs" / hashlib.sha256(WEIGHTS).hexdigest()).read_bytes() == WEIGHTS
