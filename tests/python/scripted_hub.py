"""A model hub on two loopback origins that behaves as huggingface.co does.

Goal: everything a hub does to a downloader, and a record of everything a downloader sends to it.
Method: the hub's own origin answers the API and the /resolve/ requests; weight files (LFS) lie on
another origin, the CDN, behind signed links that expire. Faults of fault_server.py may be put on
both.

    with ScriptedHub() as hub:
        commit = hub.push("org/name", folder)     # a branch moves: an ordinary push
        hub.gate("org/name")                      # from here on only with an accepted token
        hub.links.expire_all()                    # 403 for each signed link that was given out
        hub.cdn.faults.append(Fault(reset(after_bytes=300)))
    hub.requests                                  # what was asked, of whom, with which headers

Which answers: the hub's documentation of rate limits, the public client's reading of headers and
error codes, and recorded answers of 2025 and 2026.
"""

import base64
import email.utils
import fnmatch
import hashlib
import json
import pathlib
import re
import threading
import time
import urllib.parse
from dataclasses import dataclass, field

from fault_server import FaultServer, status
from hub_content import HubFile, Repository, SignedLinks, git_blob_sha1
from range_server import BytesResource, RangeServer, Response, text_response

PAGE_ENTRIES = 1000
RATE_LIMIT_POLICY = '"fixed window";"resolvers";q=3000;w=300'


@dataclass
class HubRequest:
    """One request as it arrived. `origin`: the name of the server; header names in lower case."""

    origin: str
    method: str
    path: str
    query: str
    headers: dict
    arrival: float = field(default_factory=time.monotonic)  # seconds
    status: int = 0

    @property
    def host(self):
        return self.headers.get("host", "")


class _Recording(RangeServer):
    """Keeps each request with its headers. `origin_name` and `seen` are the hub's."""

    def keep(self, request):
        headers = {name.lower(): value for name, value in request.headers.items()}
        record = HubRequest(self.origin_name, request.method, request.path, request.query, headers)
        with self.seen_lock:
            self.seen.append(record)
        return record


class _Cdn(_Recording):
    """Weight files behind signed links, as CloudFront before a bucket."""

    def lookup(self, path):
        file = self.hub.file_on_cdn(path)
        if file is None:
            return None
        resource = BytesResource(file.data)
        # As of an object that was uploaded in parts: no digest of the whole.
        resource.etag = f'"{hashlib.md5(file.data).hexdigest()}-2"'
        return resource

    def respond(self, request):
        if not self.hub.links.are_good_for(request.path, request.query):
            return text_response(403, '<?xml version="1.0" encoding="UTF-8"?><Error><Code>'
                                      "AccessDenied</Code><Message>Access denied</Message></Error>",
                                 "text/xml")
        response = super().respond(request)
        if response.status == 206 and "gzip" in request.headers.get("Accept-Encoding", ""):
            # Known of CloudFront: who accepts gzip gets the whole file for any range.
            response.headers.pop("Content-Range")
            response.status, response.begin, response.end = 200, 0, response.resource.size
        if response.resource is not None:
            response.headers["Last-Modified"] = email.utils.formatdate(0, usegmt=True)
        return response


class _Api(_Recording):
    """The hub's own origin."""

    ROUTES = [
        ("tree", re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>.+)")),
        ("info", re.compile(r"/api/models/(?P<name>[^/]+/[^/]+?)(/revision/(?P<revision>.+))?")),
        ("cached", re.compile(r"/api/resolve-cache/models/(?P<name>[^/]+/[^/]+)/"
                              r"(?P<revision>[^/]+)/(?P<path>.+)")),
        ("resolve", re.compile(r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<rest>.+)")),
    ]

    def respond(self, request):
        for route, pattern in self.ROUTES:
            if match := pattern.fullmatch(request.path):
                break
        else:
            return text_response(404, "<!doctype html><title>404</title>", "text/html")
        place = match.groupdict()
        if new_name := self.hub.renamed.get(place["name"]):
            target = request.path.replace(place["name"], new_name, 1)
            return _redirect(307, urllib.parse.quote(target) + (f"?{request.query}" if request.query
                                                                else ""))
        if route == "resolve":
            place["revision"], place["path"] = self.hub.split_revision(place["name"], place["rest"])
        response = (self._refusal(request, place["name"], is_file=route in ("resolve", "cached"))
                    or getattr(self, "_" + route)(request, self.hub.repositories[place["name"]],
                                                  place))
        if route == "resolve":
            response.headers["RateLimit"] = '"resolvers";r=2998;t=172'
            response.headers["RateLimit-Policy"] = RATE_LIMIT_POLICY
        return response

    def _refusal(self, request, name, is_file):
        """Why this caller may not see this repository, or None."""
        authorization = request.headers.get("Authorization")
        token = authorization.removeprefix("Bearer ") if authorization is not None else None
        if token is not None and token not in self.hub.tokens:
            return _refused(401, "Invalid credentials in Authorization header")
        repository = self.hub.repositories.get(name)
        may_see = token is not None and name in self.hub.tokens[token]
        if repository is None or (repository.access == "private" and not may_see):
            # Who is not logged in is not told whether it exists.
            return _refused(401 if token is None else 404, "Repository not found", "RepoNotFound")
        if repository.access == "gated" and is_file and not may_see:
            # Names and sizes of a gated repository are public, its files are not.
            if token is None:
                return _refused(401, f"Access to model {name} is restricted. You must have access "
                                     "to it and be authenticated to access it. Please log in.",
                                "GatedRepo")
            return _refused(403, f"Access to model {name} is restricted and you are not in the "
                                 f"authorized list. Visit {self.hub.endpoint}/{name} to ask for "
                                 "access.", "GatedRepo")
        return None

    def _commit(self, repository, place):
        revision = place["revision"] or "main"
        commit = repository.commit_of(revision)
        return commit, _refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def _info(self, request, repository, place):
        commit, refusal = self._commit(repository, place)
        if commit is None:
            return refusal
        return _json({"_id": "621ffdc036468d709f17434d", "id": repository.name,
                      "modelId": repository.name, "sha": commit, "private": False,
                      "gated": "manual" if repository.access == "gated" else False,
                      "disabled": False, "lastModified": "2026-01-01T00:00:00.000Z",
                      "tags": ["safetensors", "license:apache-2.0"], "downloads": 1,
                      "siblings": [{"rfilename": path}
                                   for path in sorted(repository.commits[commit])]})

    def _tree(self, request, repository, place):
        commit, refusal = self._commit(repository, place)
        if commit is None:
            return refusal
        fields = dict(urllib.parse.parse_qsl(request.query))
        files = repository.commits[commit]
        folders = {str(parent) for path in files for parent in pathlib.PurePosixPath(path).parents
                   if str(parent) != "."}
        entries = [{"type": "directory", "oid": git_blob_sha1(folder.encode()), "size": 0,
                    "path": folder} for folder in folders]
        entries += [file.tree_entry() for file in files.values()]
        if fields.get("recursive", "false") not in ("true", "1", "True"):
            entries = [entry for entry in entries if "/" not in entry["path"]]
        entries.sort(key=lambda entry: entry["path"])
        begin = _cursor_position(fields.get("cursor"))
        end = begin + min(int(fields.get("limit", self.hub.page_entries)), self.hub.page_entries)
        response = _json(entries[begin:end])
        if end < len(entries):
            fields["cursor"] = _cursor(end)
            response.headers["Link"] = (f"<{self.hub.endpoint}{urllib.parse.quote(request.path)}?"
                                        f'{urllib.parse.urlencode(fields)}>; rel="next"')
        return response

    def _resolve(self, request, repository, place):
        commit, refusal = self._commit(repository, place)
        if commit is None:
            return refusal
        file = repository.commits[commit].get(place["path"])
        if file is None:
            response = _refused(404, "Entry not found", "EntryNotFound")
            response.headers["X-Repo-Commit"] = commit
            return response
        if file.is_lfs:
            location = self.hub.cdn_url + self.hub.links.sign(f"/xet-bridge/{file.cdn_name}",
                                                              file.path)
            response = _redirect(302, location)
            response.headers["X-Xet-Hash"] = file.cdn_name
        else:
            asked = urllib.parse.quote(request.path, safe="")
            response = _redirect(307, urllib.parse.quote(
                f"/api/resolve-cache/models/{repository.name}/{commit}/{file.path}") +
                f"?{asked}=&etag={urllib.parse.quote(file.etag, safe='')}")
        response.headers.update({"X-Repo-Commit": commit, "X-Linked-Etag": file.etag,
                                 "X-Linked-Size": str(len(file.data)), "Accept-Ranges": "bytes"})
        return response

    def _cached(self, request, repository, place):
        file = repository.commits.get(place["revision"], {}).get(place["path"])
        if file is None or file.is_lfs:
            return _refused(404, "Entry not found", "EntryNotFound")
        response = RangeServer.respond(self, request)
        response.headers["X-Repo-Commit"] = place["revision"]
        return response

    def lookup(self, path):
        """Only for _cached(), which has checked the path."""
        place = self.ROUTES[2][1].fullmatch(path).groupdict()
        file = self.hub.repositories[place["name"]].commits[place["revision"]][place["path"]]
        resource = BytesResource(file.data, "text/plain; charset=utf-8")
        resource.etag = file.etag
        return resource


class _FaultsOver(FaultServer):
    """The faults change what the class behind it in the method order answers."""

    def __init__(self, hub, name, *, bind, tls=None, **options):
        # Ready before the port is open.
        self.hub, self.origin_name = hub, name
        self.seen, self.seen_lock = hub.seen, hub.seen_lock
        self._tls = tls
        super().__init__(".", bind=bind, **options)
        if tls:
            # Each connection's own thread shakes hands, with its first read.
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True,
                                                do_handshake_on_connect=False)

    @property
    def url(self):
        return super().url.replace("http", "https") if self._tls else super().url

    def respond(self, request):
        record = self.keep(request)
        response = super().respond(request)
        record.status = int(response.status)
        return response


class _FaultyApi(_FaultsOver, _Api):
    pass


class _FaultyCdn(_FaultsOver, _Cdn):
    pass


class _Foreign(_Recording):
    """A server that is no part of the hub, and would give the CDN's files to anybody."""

    def lookup(self, path):
        file = next((file for file in self.hub.all_files()
                     if path in (f"/xet-bridge/{file.cdn_name}", f"/{file.path}")), None)
        return BytesResource(file.data) if file else None


class _FaultyForeign(_FaultsOver, _Foreign):
    pass


class ScriptedHub:
    """The hub and its CDN. Repositories, tokens and faults may change while it runs.

    `tls`: an ssl.SSLContext for both, whose certificate should be for 127.0.0.1 and 127.0.0.2.
    """

    def __init__(self, *, page_entries=PAGE_ENTRIES, tls=None):
        self.repositories, self.renamed = {}, {}
        self.tokens = {}  # token -> names of the gated and private repositories it opens
        self.page_entries = page_entries
        self.links = SignedLinks()
        self.seen, self.seen_lock = [], threading.Lock()
        self.api = _FaultyApi(self, "hub", bind="127.0.0.1", tls=tls)
        self.cdn = _FaultyCdn(self, "cdn", bind="127.0.0.2", tls=tls)
        self._servers = [self.api, self.cdn]
        self._running = False

    def __enter__(self):
        for server in self._servers:
            server.start()
        self._running = True
        return self

    def __exit__(self, *_):
        for server in self._servers:
            server.stop()

    @property
    def endpoint(self):
        """What HF_ENDPOINT is set to; without a slash at its end."""
        return self.api.url.rstrip("/")

    @property
    def cdn_url(self):
        return self.cdn.url.rstrip("/")

    @property
    def requests(self):
        """What was asked so far, oldest first."""
        for server in self._servers:
            server.requests  # Waits for the running ones.
        with self.seen_lock:
            return list(self.seen)

    def resolves(self, pattern="*"):
        """The requests for a file's place, for files of this shell pattern."""
        return [request for request in self.requests if request.origin == "hub"
                and fnmatch.fnmatch(request.path, "*/resolve/" + pattern)]

    def foreign_server(self, name, bind="127.0.0.3", tls=None):
        """Another origin, in the record under `name`, that serves each file as /PATH."""
        server = _FaultyForeign(self, name, bind=bind, tls=tls)
        self._servers.append(server)
        return server.start() if self._running else server

    def push(self, name, folder, branch="main"):
        """Commit the files below `folder` to a branch, made if need be; returns the commit."""
        folder = pathlib.Path(folder)
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
        files = {name: HubFile(name, path.read_bytes())
                 for name, path in files.items() if path.is_file()}
        repository = self.repositories.setdefault(name, Repository(name))
        parent = repository.branches.get(branch, "")
        listing = "".join(f"{file.git_sha1} {path}\n" for path, file in files.items())
        commit = hashlib.sha1(f"{name} {parent}\n{listing}".encode()).hexdigest()
        repository.commits[commit] = files
        repository.branches[branch] = commit
        return commit

    def gate(self, name):
        self.repositories[name].access = "gated"

    def hide(self, name):
        self.repositories[name].access = "private"

    def rename(self, name, new_name):
        """Requests for the old name are redirected."""
        repository = self.repositories.pop(name)
        repository.name = new_name
        self.repositories[new_name], self.renamed[name] = repository, new_name

    def add_token(self, token, *opens):
        self.tokens[token] = set(opens)

    def all_files(self):
        return [file for repository in list(self.repositories.values())
                for files in list(repository.commits.values()) for file in files.values()]

    def file_on_cdn(self, path):
        name = path.removeprefix("/xet-bridge/")
        return next((f for f in self.all_files() if f.is_lfs and f.cdn_name == name), None)

    def split_revision(self, name, rest):
        """(revision, path) of what follows /resolve/; a branch's name may have slashes."""
        repository = self.repositories.get(name)
        for branch in sorted(repository.branches if repository else [], key=len, reverse=True):
            if rest.startswith(branch + "/"):
                return branch, rest[len(branch) + 1 :]
        revision, _, path = rest.partition("/")
        return revision, path


def rate_limited(seconds, retry_after=True):
    """429 as the hub gives it; `retry_after`: the plain header too, besides the hub's own."""
    wait = {"retry_after": seconds} if retry_after else {}
    return status(429, **wait, ratelimit=f'"resolvers";r=0;t={seconds}',
                  ratelimit_policy=RATE_LIMIT_POLICY,
                  text=json.dumps({"error": "We had to rate limit you."}))


def _cursor(position):
    return base64.urlsafe_b64encode(json.dumps({"position": position}).encode()).decode()


def _cursor_position(cursor):
    return json.loads(base64.urlsafe_b64decode(cursor))["position"] if cursor else 0


def _json(value, code=200, headers=None):
    return text_response(code, json.dumps(value), "application/json; charset=utf-8", headers)


def _redirect(code, location):
    return text_response(code, f"Redirecting to {location}", headers={
        "Location": location, "Vary": "Origin, Accept"})


def _refused(code, message, error_code=None):
    headers = {"X-Error-Message": message}
    if error_code:
        headers["X-Error-Code"] = error_code
    if code == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="Authentication required", charset="UTF-8"'
    return _json({"error": message}, code, headers)
