"""What a scripted hub holds: files under git's and its own names, repositories, signed links."""

import base64
import hashlib
import hmac
import json
import pathlib
import re
import threading
import time
import urllib.parse
from dataclasses import dataclass, field

LFS_SUFFIXES = (".safetensors", ".bin")  # What a new repository's .gitattributes sends to LFS.
LINK_SECONDS = 3600


def git_blob_sha1(data):
    """The name that git gives these bytes."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class HubFile:
    """A file's bytes and the names that the hub has for them."""

    def __init__(self, path, data):
        self.path, self.data = path, data
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.is_lfs = path.endswith(LFS_SUFFIXES)
        # The CDN's names are neither the sha256 nor the git hash.
        self.cdn_name = hashlib.blake2b(data, digest_size=32).hexdigest()
        pointer = (f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n"
                   f"size {len(data)}\n").encode()
        self.git_sha1 = git_blob_sha1(pointer if self.is_lfs else data)
        self.pointer_size = len(pointer)

    @property
    def etag(self):
        """What X-Linked-Etag says."""
        return f'"{self.sha256 if self.is_lfs else self.git_sha1}"'

    def tree_entry(self):
        entry = {"type": "file", "oid": self.git_sha1, "size": len(self.data), "path": self.path}
        if self.is_lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.data),
                            "pointerSize": self.pointer_size}
            entry["xetHash"] = self.cdn_name
        return entry


@dataclass
class Repository:
    name: str
    branches: dict = field(default_factory=dict)  # name -> commit
    commits: dict = field(default_factory=dict)  # commit -> {path: HubFile}
    access: str = "public"  # or "gated", "private"

    def commit_of(self, revision):
        """The commit that a branch, tag or commit names, or None. A short hash is none."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class SignedLinks:
    """Makes the CDN's links and says which are good."""

    def __init__(self, seconds=LINK_SECONDS):
        self.seconds = seconds  # How long a link made from now on is good; may be negative.
        self._lock = threading.Lock()
        self._key = b"generation 0"
        self._generation = 0

    def expire_all(self):
        """Every link made so far is answered with 403; new ones are good."""
        with self._lock:
            self._generation += 1
            self._key = f"generation {self._generation}".encode()

    def _signature(self, path, expires):
        with self._lock:
            digest = hmac.new(self._key, f"{path} {expires}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest.digest()).decode().replace("=", "_")

    def sign(self, path, file_name):
        """Path and query of a link to the CDN's `path`."""
        expires = int(time.time()) + self.seconds
        policy = json.dumps({"Statement": [{"Resource": path, "Condition": {
            "DateLessThan": {"AWS:EpochTime": expires}}}]})
        query = {"X-Xet-Cas-Uid": "public",
                 "response-content-disposition": f'inline; filename="{file_name}";',
                 "Expires": expires,
                 "Policy": base64.urlsafe_b64encode(policy.encode()).decode().replace("=", "_"),
                 "Signature": self._signature(path, expires), "Key-Pair-Id": "K2SCRIPTED"}
        return path + "?" + urllib.parse.urlencode(query)

    def are_good_for(self, path, query):
        """Whether the query is the signature of this path and not expired."""
        fields = dict(urllib.parse.parse_qsl(query))
        expires = fields.get("Expires", "")
        if not re.fullmatch(r"\d{1,12}", expires) or int(expires) <= time.time():
            return False
        return hmac.compare_digest(fields.get("Signature", ""), self._signature(path, expires))


def write_cache(cache, repository, commit, branch="main"):
    """Write what the public client leaves under HF_HUB_CACHE; returns the snapshot's folder."""
    root = pathlib.Path(cache) / f"models--{repository.name.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    for path, file in repository.commits[commit].items():
        blob = root / "blobs" / file.etag.strip('"')
        blob.write_bytes(file.data)
        link = snapshot / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(pathlib.Path("../" * (2 + path.count("/"))) / "blobs" / blob.name)
    reference = root / "refs" / branch
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    return snapshot
