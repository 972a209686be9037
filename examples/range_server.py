#!/usr/bin/env python3
"""Serve a directory over HTTP/1.1 with byte ranges, at a chosen speed. Python standard library only.

Goal: a local stand-in for object storage. What a downloader relies on is here and exact: 206 with
Content-Range, 416, strong ETags that change with the file, If-Match (412), keep-alive; and the two
figures that make a link, bytes per second and time to the first byte, can be set.

    range_server.py DIR [--port 0 --port-file FILE] [--bytes-per-second N] [--first-byte-ms N]
                        [--log FILE]

    with RangeServer(root) as server:            # in a test
        fetch(server.url + "model/config.json")
    server.requests                              # one record per request

Byte offsets are half-open, [begin, end), everywhere except in HTTP's own headers.
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
import signal
import socket
import socketserver
import sys
import threading
import time
import urllib.parse
from collections import deque
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE_BYTES_MAX = 4 << 20
PACED_PIECES_PER_SECOND = 100  # A paced answer moves in pieces of about 10 ms.
RECORDS_KEPT = 100_000


class FileResource:
    """One open file: a name for some bytes that do not change under their ETag."""

    content_type = "application/octet-stream"

    def __init__(self, path):
        self._file = open(path, "rb")
        status = os.fstat(self._file.fileno())
        self.size = status.st_size
        identity = f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
        self.etag = '"' + hashlib.sha256(identity.encode()).hexdigest()[:32] + '"'

    def send(self, connection, begin, byte_count):
        """Send up to `byte_count` bytes from offset `begin`; returns how many, 0 at the end."""
        return os.sendfile(connection.fileno(), self._file.fileno(), begin, byte_count)

    def read(self, begin, byte_count):
        return os.pread(self._file.fileno(), byte_count, begin)

    def close(self):
        self._file.close()


class BytesResource:
    """The same for bytes in memory."""

    def __init__(self, data, content_type="application/octet-stream"):
        self._data = memoryview(data)
        self.size = len(self._data)
        self.etag = '"' + hashlib.sha256(self._data).hexdigest()[:32] + '"'
        self.content_type = content_type

    def send(self, connection, begin, byte_count):
        return connection.send(self._data[begin : begin + byte_count])

    def read(self, begin, byte_count):
        return bytes(self._data[begin : begin + byte_count])

    def close(self):
        pass


@dataclass
class Request:
    """What the client asked. `path` is decoded; `query` is as sent; header names ignore case."""

    method: str
    path: str
    headers: object
    query: str = ""


@dataclass
class Response:
    """What to answer: resource bytes [begin, end) under `headers`; no resource means no body."""

    status: int
    headers: dict = field(default_factory=dict)
    resource: object = None
    begin: int = 0
    end: int = 0


@dataclass
class Record:
    """One finished request. `begin`, `end`: the bytes the answer promised (0, 0 if it had none)."""

    method: str
    path: str
    begin: int
    end: int
    status: int
    bytes_sent: int  # of the body
    time: float  # Unix seconds at the request's arrival
    seconds: float  # from arrival to the last byte
    connection: int  # counts accepted connections from 0


class Pace:
    """A rate shared by all connections. Without a rate it never waits."""

    def __init__(self, bytes_per_second):
        self.bytes_per_second = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def piece_bytes(self):
        if not self.bytes_per_second:
            return PIECE_BYTES_MAX
        wanted = int(self.bytes_per_second / PACED_PIECES_PER_SECOND)
        return min(max(wanted, 1 << 10), PIECE_BYTES_MAX)

    def take(self, byte_count, stopping):
        """Wait until `byte_count` more bytes fit the rate, or `stopping` is set."""
        if not self.bytes_per_second:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._free_at)
            self._free_at = begin + byte_count / self.bytes_per_second
            wait_seconds = self._free_at - now
        stopping.wait(wait_seconds)


def parse_range(header, size):
    """The byte interval a Range header asks of `size` bytes.

    Returns None where RFC 9110 14.2 lets a server ignore the header (other units, several ranges,
    bad syntax) and an empty interval (0, 0) where nothing of the range exists.
    """
    match = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", header or "", re.ASCII)
    if not match or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        begin, end = max(size - int(last), 0), size
    else:
        begin = int(first)
        if last and int(last) < begin:
            return None
        end = min(int(last) + 1, size) if last else size
    return (begin, end) if begin < end else (0, 0)


def etag_matches(header, etag):
    """Whether an If-Match or If-Range value names `etag` (strong comparison)."""
    return header.strip() == "*" or etag in (tag.strip() for tag in header.split(","))


class RangeServer:
    """Serves the files under `root` from daemon threads; a subclass may change any answer.

    Override `lookup` to serve other bytes, `respond` to change what is answered and `transmit` to
    change how the body travels. All three run on the connection's thread, several at a time.
    """

    def __init__(self, root, *, bind="127.0.0.1", port=0, bytes_per_second=0, first_byte_ms=0,
                 log_path=None):
        self.root = pathlib.Path(root).resolve()
        self.stopping = threading.Event()
        self._first_byte_seconds = first_byte_ms / 1000
        self._pace = Pace(bytes_per_second)
        self._lock = threading.Condition()
        self._records = deque(maxlen=RECORDS_KEPT)
        self._requests_running = 0
        self._connections = set()
        self._connection_count = 0
        self._log = open(log_path, "a", buffering=1) if log_path else None
        self._http = _HttpServer((bind, port), _Handler)
        self._http.range_server = self
        self._thread = None
        self.bind = bind
        self.port = self._http.server_address[1]

    @property
    def url(self):
        """The root's address, ending in a slash."""
        return f"http://{self.bind}:{self.port}/"

    @property
    def requests(self):
        """Records of the finished requests, oldest first; waits up to 1 s for running ones."""
        with self._lock:
            self._lock.wait_for(lambda: self._requests_running == 0, timeout=1)
            # They end in another order: an answer reaches its client before it is recorded here.
            return sorted(self._records, key=lambda record: record.time)

    def start(self):
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def stop(self):
        """Close the port and every connection; answers under way are cut."""
        self.stopping.set()
        if self._thread:
            self._http.shutdown()
            self._thread.join()
            self._thread = None
        self._http.server_close()
        with self._lock:
            for connection in self._connections:
                _shut_down(connection)
            self._lock.wait_for(lambda: self._requests_running == 0, timeout=5)
        if self._log:
            self._log.close()
            self._log = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def lookup(self, path):
        """The resource behind a decoded URL path, or None. The caller closes it."""
        parts = path.split("/")
        if "\0" in path or "\\" in path or ".." in parts:
            return None
        try:
            file = (self.root / path.lstrip("/")).resolve()  # follows links, then checks
            if file.is_relative_to(self.root) and file.is_file():
                return FileResource(file)
        except OSError:
            pass
        return None

    def respond(self, request):
        """Decide the answer to a GET or HEAD."""
        resource = self.lookup(request.path)
        if resource is None:
            return text_response(HTTPStatus.NOT_FOUND, "no such file\n")
        headers = {"ETag": resource.etag, "Accept-Ranges": "bytes"}
        expected = request.headers.get("If-Match")
        if expected is not None and not etag_matches(expected, resource.etag):
            resource.close()
            return Response(HTTPStatus.PRECONDITION_FAILED, headers)
        headers["Content-Type"] = resource.content_type
        interval = None
        if_range = request.headers.get("If-Range")
        if request.method == "GET" and (if_range is None or etag_matches(if_range, resource.etag)):
            interval = parse_range(request.headers.get("Range"), resource.size)
        if interval is None:
            return Response(HTTPStatus.OK, headers, resource, 0, resource.size)
        begin, end = interval
        if begin == end:
            headers["Content-Range"] = f"bytes */{resource.size}"
            resource.close()
            return Response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers)
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{resource.size}"
        return Response(HTTPStatus.PARTIAL_CONTENT, headers, resource, begin, end)

    def transmit(self, connection, response):
        """Send the body at the server's pace, yielding the size of each piece after it left."""
        at = response.begin
        while at < response.end and not self.stopping.is_set():
            piece_bytes = min(self._pace.piece_bytes(), response.end - at)
            self._pace.take(piece_bytes, self.stopping)
            piece_end = at + piece_bytes
            while at < piece_end:
                sent = response.resource.send(connection, at, piece_end - at)
                if sent == 0:  # The file became shorter: the missing bytes end the connection.
                    return
                at += sent
                yield sent

    # What follows is the handler's side.

    def _connection_opened(self, connection):
        with self._lock:
            self._connections.add(connection)
            self._connection_count += 1
            return self._connection_count - 1

    def _connection_closed(self, connection):
        with self._lock:
            self._connections.discard(connection)

    def _request_started(self):
        with self._lock:
            self._requests_running += 1
        self.stopping.wait(self._first_byte_seconds)

    def _request_finished(self, record):
        with self._lock:
            self._records.append(record)
            if self._log:
                self._log.write(json.dumps(asdict(record)) + "\n")
            self._requests_running -= 1
            self._lock.notify_all()


def text_response(status, text, content_type="text/plain; charset=utf-8", headers=None):
    """A small answer that is not a file."""
    resource = BytesResource(text.encode(), content_type)
    headers = {"Content-Type": content_type, **(headers or {})}
    return Response(status, headers, resource, 0, resource.size)


def _shut_down(connection):
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # The client was faster.


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # stop() ends the connections itself.
    request_queue_size = 256

    def server_bind(self):
        """As the base class, without its reverse look-up of the host's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request, client_address):
        """A client that leaves early is ordinary; anything else is our bug and worth a trace."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "range-server"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.owner = self.server.range_server
        self.connection_index = self.owner._connection_opened(self.connection)

    def finish(self):
        self.owner._connection_closed(self.connection)
        super().finish()

    def do_GET(self):
        arrival, start = time.time(), time.monotonic()
        self.owner._request_started()
        target = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(target.path, errors="replace")
        response, sent = Response(HTTPStatus.INTERNAL_SERVER_ERROR), 0
        try:
            response = self.owner.respond(
                Request(self.command, path, self.headers, target.query))
            self._send_head(response)
            if self.command != "HEAD" and response.resource is not None:
                try:
                    for piece_bytes in self.owner.transmit(self.connection, response):
                        sent += piece_bytes
                except OSError:
                    pass  # The client left, or a test cut the connection.
                if sent < response.end - response.begin:
                    self.close_connection = True
        finally:
            if response.resource is not None:
                response.resource.close()
            self.owner._request_finished(Record(
                method=self.command, path=path, begin=response.begin, end=response.end,
                status=int(response.status), bytes_sent=sent, time=arrival,
                seconds=round(time.monotonic() - start, 6), connection=self.connection_index))

    do_HEAD = do_GET

    def _send_head(self, response):
        if self.owner.stopping.is_set():
            self.close_connection = True
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in response.headers:
            self.send_header("Content-Length", str(response.end - response.begin))
        self.end_headers()

    def log_message(self, *_):
        """The log is ours (Record); stderr stays quiet."""


def write_atomically(path, text):
    """Write a small file so that a reader sees all of it or none."""
    temporary = pathlib.Path(f"{path}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def add_server_options(parser):
    """The options of any server built on this one; `server_options` turns them into arguments."""
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--port-file", type=pathlib.Path, help="gets the port, once it is open")
    parser.add_argument("--bytes-per-second", type=float, default=0, help="all connections; 0: off")
    parser.add_argument("--first-byte-ms", type=float, default=0, help="wait before each answer")
    parser.add_argument("--log", type=pathlib.Path, help="one JSON line per request")


def server_options(options):
    return dict(bind=options.bind, port=options.port, bytes_per_second=options.bytes_per_second,
                first_byte_ms=options.first_byte_ms, log_path=options.log)


def serve_until_stopped(server, options):
    """Run `server` until SIGINT or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with server:
        print(f"serving at {server.url}", flush=True)
        if options.port_file:
            write_atomically(options.port_file, f"{server.port}\n")
        stop.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    add_server_options(parser)
    options = parser.parse_args()
    if not options.directory.is_dir():
        parser.error(f"{options.directory} is not a directory")
    serve_until_stopped(RangeServer(options.directory, **server_options(options)), options)


if __name__ == "__main__":
    main()
