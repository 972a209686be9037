"""The range server keeps to HTTP/1.1, so a downloader that fails against it is at fault itself."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import range_server
from range_server import RangeServer, parse_range

DATA = bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "data.bin").write_bytes(DATA)
    (tmp_path / "root" / "sub" / "a b.txt").write_text("text")
    (tmp_path / "root" / "empty").write_bytes(b"")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    return tmp_path / "root"


@pytest.fixture
def server(folder):
    with RangeServer(folder) as server:
        yield server


def ask(server, path="/data.bin", method="GET", connection=None, **headers):
    """(response, body) of one request; header names with underscores for dashes."""
    connection = connection or http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    return response, response.read()


@pytest.mark.parametrize("header,interval", [
    ("bytes=0-0", (0, 1)), ("bytes=2-", (2, 10)), ("bytes=-3", (7, 10)), ("bytes=-30", (0, 10)),
    ("bytes=5-500", (5, 10)), ("bytes=10-", (0, 0)), ("bytes=-0", (0, 0)), ("bytes=4-3", None),
    ("bytes=0-1,3-4", None), ("items=0-1", None), ("bytes=-", None), ("bytes=a-b", None),
    ("bytes=0-" + "9" * 5000, None), (None, None)])
def test_parse_range_follows_the_rfc(header, interval):
    assert parse_range(header, 10) == interval


def test_whole_file(server):
    response, body = ask(server)
    assert (response.status, response.version) == (200, 11)
    assert response.headers["Accept-Ranges"] == "bytes"
    assert body == DATA


@pytest.mark.parametrize("header,begin,end", [
    ("bytes=0-0", 0, 1), ("bytes=100-4999", 100, 5000), ("bytes=10000-", 10000, 10240),
    ("bytes=-5", 10235, 10240), ("bytes=10000-99999", 10000, 10240)])
def test_a_range_is_answered_with_206_and_content_range(server, header, begin, end):
    response, body = ask(server, Range=header)
    assert response.status == 206
    assert response.headers["Content-Range"] == f"bytes {begin}-{end - 1}/{len(DATA)}"
    assert response.headers["Content-Length"] == str(end - begin)
    assert body == DATA[begin:end]


def test_a_range_behind_the_end_is_416_with_the_size(server):
    for path, size in (("/data.bin", len(DATA)), ("/empty", 0)):
        response, body = ask(server, path, Range=f"bytes={size}-{size + 5}")
        assert (response.status, body) == (416, b"")
        assert response.headers["Content-Range"] == f"bytes */{size}"


def test_several_ranges_give_the_whole_file(server):
    response, body = ask(server, Range="bytes=0-1,5-6")
    assert (response.status, body) == (200, DATA)


def test_head_gives_size_and_no_body(server):
    response, body = ask(server, method="HEAD", Range="bytes=0-1")
    assert (response.status, body) == (200, b"")
    assert response.headers["Content-Length"] == str(len(DATA))
    assert server.requests[-1].bytes_sent == 0


def test_etag_is_strong_and_changes_with_the_file(server, folder):
    first = ask(server)[0].headers["ETag"]
    assert first.startswith('"') and first == ask(server, method="HEAD")[0].headers["ETag"]
    os.utime(folder / "data.bin", ns=(1, 1))
    touched = ask(server)[0].headers["ETag"]
    copy = folder / "copy"
    copy.write_bytes(DATA)
    os.utime(copy, ns=(1, 1))
    copy.replace(folder / "data.bin")
    replaced = ask(server)[0].headers["ETag"]
    assert len({first, touched, replaced}) == 3


def test_if_match_guards_against_another_version(server):
    etag = ask(server)[0].headers["ETag"]
    assert ask(server, If_Match=etag, Range="bytes=0-1")[0].status == 206
    assert ask(server, If_Match=f'"x", {etag}')[0].status == 200
    assert ask(server, If_Match="*")[0].status == 200
    response, body = ask(server, If_Match='"old"', Range="bytes=0-1")
    assert (response.status, body) == (412, b"")


def test_if_range_with_an_old_etag_gives_the_whole_file(server):
    etag = ask(server)[0].headers["ETag"]
    assert ask(server, If_Range=etag, Range="bytes=0-1")[0].status == 206
    assert ask(server, If_Range='"old"', Range="bytes=0-1")[0].status == 200


@pytest.mark.parametrize("path", [
    "/nothing", "/", "/sub", "/sub/", "/../secret", "/%2e%2e/secret", "/sub/..%2f..%2fsecret",
    "/link", "//etc/passwd", "/data.bin%00"])
def test_only_files_below_the_root_exist(server, path):
    assert ask(server, path)[0].status == 404


def test_escapes_and_queries_in_paths(server):
    response, body = ask(server, "/sub/a%20b.txt?version=2")
    assert (response.status, body) == (200, b"text")


def test_one_connection_serves_many_requests(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    expected = (("/data.bin", 206), ("/nothing", 404), ("/empty", 416), ("/data.bin", 206))
    for path, status in expected:
        assert ask(server, path, connection=connection, Range="bytes=0-9")[0].status == status
    assert {record.connection for record in server.requests} == {0}


def test_other_methods_are_refused(server):
    assert ask(server, method="DELETE")[0].status == 501


def test_each_request_leaves_a_record_and_a_log_line(folder, tmp_path):
    log = tmp_path / "log"
    with RangeServer(folder, log_path=log) as server:
        ask(server, Range="bytes=5-14")
        ask(server, "/nothing")
        first, second = server.requests
    assert (first.path, first.begin, first.end, first.status, first.bytes_sent) == (
        "/data.bin", 5, 15, 206, 10)
    assert second.status == 404
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(line["path"] for line in lines) == ["/data.bin", "/nothing"]
    assert {"path", "begin", "end", "status", "bytes_sent", "time"} <= set(lines[0])
    assert abs(lines[0]["time"] - time.time()) < 60


def test_the_rate_is_shared_by_all_connections(folder):
    (folder / "big").write_bytes(bytes(1_000_000))
    with RangeServer(folder, bytes_per_second=4e6) as server:
        start = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            bodies = list(pool.map(lambda _: ask(server, "/big")[1], range(2)))
        seconds = time.monotonic() - start
    assert [len(body) for body in bodies] == [1_000_000] * 2
    assert 0.45 < seconds < 5  # 2 MB at 4 MB/s; the upper bound allows for a busy machine


def test_the_first_byte_waits(folder):
    with RangeServer(folder, first_byte_ms=120) as server:
        start = time.monotonic()
        ask(server)
        assert time.monotonic() - start >= 0.12


def test_a_file_that_shrinks_ends_the_connection(server, folder, monkeypatch):
    monkeypatch.setattr(range_server, "PIECE_BYTES_MAX", 1024)
    honest_size = range_server.FileResource

    class Grown(honest_size):
        def __init__(self, path):
            super().__init__(path)
            self.size += 100  # as if the file had been truncated after it was opened

    monkeypatch.setattr(range_server, "FileResource", Grown)
    with pytest.raises(http.client.IncompleteRead) as error:
        ask(server)
    assert error.value.partial == DATA


def test_stop_cuts_open_connections(folder):
    server = RangeServer(folder).start()
    idle = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    ask(server)
    start = time.monotonic()
    server.stop()
    assert time.monotonic() - start < 3
    assert idle.recv(1) == b""
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=1)


def test_the_program_writes_its_port_and_ends_on_a_signal(folder, tmp_path):
    port_file = tmp_path / "port"
    program = subprocess.Popen(
        [sys.executable, range_server.__file__, folder, "--port-file", port_file],
        stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 20
        while not port_file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        connection = http.client.HTTPConnection("127.0.0.1", int(port_file.read_text()), timeout=5)
        assert ask(None, connection=connection)[1] == DATA
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=10) == 0
    finally:
        program.kill()
        program.communicate()
