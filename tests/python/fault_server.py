"""A range server that misbehaves on request.

Goal: every way an origin or the path to it fails, at a chosen request and byte, without a network.
Method: a Fault says which requests it strikes and how it changes the honest answer; the changes
below are the catalogue. A request is changed by the first fault of the list that matches it and is
not used up.

    FaultServer(root, faults=[Fault(reset(after_bytes=300), path="*.safetensors", times=2),
                              Fault(status(503, retry_after=1), skip=5)])
"""

import fnmatch
import gzip as gzip_codec
import os
import socket
import struct
import termios
import threading
import time
from dataclasses import dataclass
from typing import Callable, Optional

from fcntl import ioctl
from range_server import BytesResource, RangeServer, Response, text_response

ALWAYS = None  # Fault.times: never used up.


@dataclass
class Fault:
    """`change(request, response, server)` returns the answer to give instead of `response`."""

    change: Callable
    path: str = "*"  # shell pattern on the decoded URL path
    method: str = "GET"
    skip: int = 0  # matching requests to leave alone first
    times: Optional[int] = 1  # requests to strike, ALWAYS for all
    covering: Optional[int] = None  # only answers whose bytes include this offset of the resource
    struck: int = 0  # requests struck so far

    def strikes(self, request, response):
        """Whether this request is hit; counts. The caller holds the server's fault lock."""
        if request.method != self.method or not fnmatch.fnmatch(request.path, self.path):
            return False
        if self.covering is not None and not response.begin <= self.covering < response.end:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not ALWAYS and self.struck >= self.times:
            return False
        self.struck += 1
        return True


class FaultServer(RangeServer):
    """A RangeServer whose answers pass through `faults`, a list that may grow while it runs."""

    def __init__(self, root, *, faults=(), **options):
        super().__init__(root, **options)
        self.faults = list(faults)
        self._fault_lock = threading.Lock()

    def respond(self, request):
        response = super().respond(request)
        with self._fault_lock:
            struck = next((f for f in self.faults if f.strikes(request, response)), None)
        return struck.change(request, response, self) if struck else response


# Changes of the answer's head.


def status(code, *, retry_after=None, text="", **headers):
    """The status `code` with a short text body; `location="..."` etc. become headers."""
    headers = {name.replace("_", "-").title(): str(value) for name, value in headers.items()}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)

    def change(request, response, server):
        _close(response)
        return text_response(code, text, headers=headers)

    return change


def html(text="<!doctype html><title>Sign in</title>"):
    """A login page with status 200, as captive portals and proxies send."""

    def change(request, response, server):
        _close(response)
        return text_response(200, text, "text/html; charset=utf-8")

    return change


def ignore_range():
    """The whole file with status 200, whatever range was asked."""

    def change(request, response, server):
        if response.resource is not None:
            response.headers.pop("Content-Range", None)
            response.status, response.begin, response.end = 200, 0, response.resource.size
        return response

    return change


def wrong_content_range(shift_bytes=1):
    """The right bytes under a Content-Range that is `shift_bytes` off."""

    def change(request, response, server):
        if response.resource is not None:
            first, last = response.begin + shift_bytes, response.end - 1 + shift_bytes
            response.headers["Content-Range"] = f"bytes {first}-{last}/{response.resource.size}"
        return response

    return change


def without_headers(*names):
    """The answer without these headers, e.g. "ETag" or "Content-Range"."""

    def change(request, response, server):
        response.headers = {k: v for k, v in response.headers.items() if k not in names}
        return response

    return change


def changed_etag(etag='"another-version"', honour_if_match=True):
    """The file was replaced: another ETag, and 412 to who insists on the old one (if honoured)."""

    def change(request, response, server):
        expected = request.headers.get("If-Match")
        if honour_if_match and expected is not None and etag not in expected:
            _close(response)
            return Response(412, {"ETag": etag})
        response.headers["ETag"] = etag
        return response

    return change


# Changes of the body.


def reset(after_bytes):
    """`after_bytes` of the body arrive, then the connection is reset (RST, not FIN)."""

    def cut(connection, server):
        _wait_until_delivered(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The descriptor's number must stay taken while Python's socket object holds it, so the
        # connection is closed by putting another file in its place.
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), connection.fileno())
        raise ConnectionResetError

    return _interrupted(after_bytes, cut)


def short_body(after_bytes):
    """`after_bytes` of the body, then an orderly close before Content-Length is reached."""

    def cut(connection, server):
        raise ConnectionAbortedError

    return _interrupted(after_bytes, cut)


def stall(after_bytes=0, seconds=3600.0):
    """`after_bytes` of the body, then silence for `seconds` (or until the server stops)."""

    def wait(connection, server):
        server.stopping.wait(seconds)

    return _interrupted(after_bytes, wait)


def extra_bytes(byte_count, declared=True):
    """`byte_count` bytes too many; `declared`: Content-Length admits them."""

    def change(request, response, server):
        if response.resource is not None:
            if not declared:
                response.headers["Content-Length"] = str(response.end - response.begin)
            response.resource = _Lengthened(response.resource, response.end)
            response.end += byte_count
        return response

    return change


def flip_bit(at):
    """Byte `at` of the resource arrives with its lowest bit flipped."""

    def change(request, response, server):
        if response.begin <= at < response.end:
            data = bytearray(response.resource.read(response.begin, response.end - response.begin))
            data[at - response.begin] ^= 1
            _replace_body(response, data)
        return response

    return change


def gzip():
    """The asked bytes compressed, with Content-Encoding, though nobody accepted that."""

    def change(request, response, server):
        if response.resource is not None:
            data = response.resource.read(response.begin, response.end - response.begin)
            _replace_body(response, gzip_codec.compress(data))
            response.headers["Content-Encoding"] = "gzip"
        return response

    return change


class _Interrupted:
    """A resource that calls `event` once, before its byte `at` is sent."""

    def __init__(self, resource, at, event, server):
        self._resource, self._at, self._event, self._server = resource, at, event, server
        self.size = resource.size

    def send(self, connection, begin, byte_count):
        if self._event and begin >= self._at:
            event, self._event = self._event, None
            event(connection, self._server)
        if self._event:
            byte_count = min(byte_count, self._at - begin)
        return self._resource.send(connection, begin, byte_count)

    def close(self):
        self._resource.close()


class _Lengthened:
    """A resource with zeros from byte `end` on."""

    def __init__(self, resource, end):
        self._resource, self._end = resource, end
        self.size = resource.size

    def send(self, connection, begin, byte_count):
        if begin >= self._end:
            return connection.send(bytes(min(byte_count, 1 << 16)))
        return self._resource.send(connection, begin, min(byte_count, self._end - begin))

    def close(self):
        self._resource.close()


def _interrupted(after_bytes, event):
    def change(request, response, server):
        if response.resource is not None:
            at = response.begin + after_bytes
            response.resource = _Interrupted(response.resource, at, event, server)
        return response

    return change


def _replace_body(response, data):
    _close(response)
    response.resource, response.begin, response.end = BytesResource(data), 0, len(data)


def _close(response):
    if response.resource is not None:
        response.resource.close()


def _wait_until_delivered(connection, timeout_seconds=1.0):
    """Wait until the peer's kernel has acknowledged everything sent so far."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        unsent = struct.unpack("i", ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        if unsent == 0:
            return
        time.sleep(0.001)
