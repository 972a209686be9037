"""Each scripted fault is what it says, seen by a plain client."""

import gzip as gzip_codec
import http.client
import socket
import time

import pytest

from fault_server import (
    ALWAYS, Fault, changed_etag, extra_bytes, flip_bit, gzip, html, ignore_range, reset,
    short_body, stall, status, without_headers, wrong_content_range)

DATA = bytes(range(251)) * 1000


@pytest.fixture
def faulty(serve, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(DATA)
    (tmp_path / "config.json").write_text("{}")
    return lambda *faults: serve(tmp_path, faults=faults)


def ask(server, path="/a.safetensors", timeout=10, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    headers = {"Range": "bytes=1000-200999"} | {
        name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    return response, response.read()


RANGE = DATA[1000:201000]


def receive_until_closed(server):
    """Body bytes read with plain recv until the connection ends: (bytes, error or None)."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"GET /a.safetensors HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                       b"Range: bytes=1000-200999\r\n\r\n")
        received = b""
        try:
            while piece := client.recv(1 << 16):
                received += piece
        except OSError as error:
            return received.partition(b"\r\n\r\n")[2], error
    return received.partition(b"\r\n\r\n")[2], None


@pytest.mark.parametrize("code", [403, 404, 408, 429, 500, 503])
def test_a_status_strikes_as_often_as_told_and_then_the_answer_is_honest(faulty, code):
    server = faulty(Fault(status(code, retry_after=7), times=2))
    for _ in range(2):
        response, _ = ask(server)
        assert (response.status, response.headers["Retry-After"]) == (code, "7")
    assert ask(server)[1] == RANGE
    assert [record.status for record in server.requests] == [code, code, 206]


def test_redirects_carry_their_location(faulty):
    response, _ = ask(faulty(Fault(status(302, location="http://elsewhere/"))))
    assert response.headers["Location"] == "http://elsewhere/"


def test_path_skip_and_covering_choose_the_request(faulty):
    fault = Fault(status(500), path="*.safetensors", skip=1, covering=5000)
    server = faulty(fault)
    assert ask(server, "/config.json", Range="bytes=0-0")[0].status == 206
    assert ask(server, Range="bytes=0-4999")[0].status == 206  # does not cover byte 5000
    assert ask(server)[0].status == 206  # skipped
    assert ask(server)[0].status == 500
    assert ask(server)[0].status == 206  # used up
    assert fault.struck == 1


def test_reset_delivers_the_bytes_and_then_a_reset(faulty):
    body, error = receive_until_closed(faulty(Fault(reset(after_bytes=3000))))
    assert body == RANGE[:3000]
    assert isinstance(error, ConnectionResetError)


def test_the_server_survives_a_reset(faulty):
    server = faulty(Fault(reset(after_bytes=0), times=3))
    for _ in range(3):
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(server)
    assert ask(server)[1] == RANGE
    assert [record.bytes_sent for record in server.requests] == [0, 0, 0, 200_000]


def test_short_body_ends_in_order_before_its_length(faulty):
    body, error = receive_until_closed(faulty(Fault(short_body(after_bytes=3000))))
    assert (body, error) == (RANGE[:3000], None)


def test_ignored_range(faulty):
    response, body = ask(faulty(Fault(ignore_range())))
    assert (response.status, body) == (200, DATA)
    assert "Content-Range" not in response.headers


def test_wrong_content_range(faulty):
    response, body = ask(faulty(Fault(wrong_content_range(8))))
    assert response.headers["Content-Range"] == f"bytes 1008-201007/{len(DATA)}"
    assert body == RANGE


def test_html_with_200(faulty):
    response, body = ask(faulty(Fault(html())))
    assert response.status == 200 and body.startswith(b"<!doctype html>")
    assert response.headers["Content-Type"].startswith("text/html")


def test_changed_etag_refuses_or_tricks_who_insists_on_the_old_one(faulty):
    server = faulty(Fault(changed_etag('"new"'), skip=1, times=ALWAYS))
    old = ask(server)[0].headers["ETag"]
    assert ask(server)[0].headers["ETag"] == '"new"'
    assert ask(server, If_Match=old)[0].status == 412
    careless = faulty(Fault(changed_etag('"new"', honour_if_match=False)))
    response, _ = ask(careless, If_Match=old)
    assert (response.status, response.headers["ETag"]) == (206, '"new"')


def test_extra_bytes_declared_and_not(faulty):
    response, body = ask(faulty(Fault(extra_bytes(10))))
    assert response.headers["Content-Length"] == "200010" and body == RANGE + bytes(10)
    body, _ = receive_until_closed(faulty(Fault(extra_bytes(10, declared=False))))
    assert body == RANGE + bytes(10)


def test_flip_bit_changes_one_bit(faulty):
    _, body = ask(faulty(Fault(flip_bit(at=1500))))
    assert [i for i, (x, y) in enumerate(zip(body, RANGE)) if x != y] == [500]


def test_gzip_is_announced(faulty):
    response, body = ask(faulty(Fault(gzip())))
    assert response.headers["Content-Encoding"] == "gzip"
    assert gzip_codec.decompress(body) == RANGE


def test_missing_headers(faulty):
    response, _ = ask(faulty(Fault(without_headers("ETag", "Content-Range"))))
    assert response.status == 206
    assert "ETag" not in response.headers and "Content-Range" not in response.headers


def test_stall_is_silence_and_then_the_rest(faulty):
    server = faulty(Fault(stall(after_bytes=100, seconds=0.3)), Fault(stall()))
    start = time.monotonic()
    assert ask(server)[1] == RANGE
    assert time.monotonic() - start >= 0.3
    with pytest.raises(TimeoutError):  # stop() at the test's end frees the server's thread
        ask(server, timeout=0.2)
