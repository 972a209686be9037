"""The program against a real web server, with the settings that people's servers have.

Goal: the store of a run from local files, whatever an honest nginx is told to do.
Method: Debian's nginx with one more setting per test; its own log says that the setting mattered.
"""

import collections
import os

import pytest

from nginx import Nginx, find_nginx
from support import last_run

BAD_INPUT = 3

pytestmark = pytest.mark.skipif(not find_nginx(), reason="nginx is not installed")


# Settings of the server, and what its log must show so that the setting was met.


def weights(log):
    return [entry for entry in log if entry["path"].endswith(".safetensors")]


def ranges_only(log):
    return {entry["status"] for entry in weights(log)} == {206}


def nothing_compressed(log):
    return ranges_only(log) and {entry["coding"] for entry in log} == {""}


def whole_files(log):
    return {entry["status"] for entry in weights(log)} == {200}


def connections_end_after(count):
    def check(log):
        served = collections.Counter(entry["connection"] for entry in log)
        return ranges_only(log) and len(served) > 3 and max(served.values()) == count
    return check


def many_connections(log):
    return ranges_only(log) and len({entry["connection"] for entry in log}) > 3


SETTINGS = {
    "as it comes": ("", ranges_only),
    "gzip": ("gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;", nothing_compressed),
    "a limited rate": ("limit_rate 2m;", ranges_only),
    "connections of three requests": ("keepalive_requests 3;", connections_end_after(3)),
    "connections of one request": ("keepalive_timeout 0;", connections_end_after(1)),
    "connections that go stale": ("keepalive_timeout 2ms;", many_connections),
    "no ETags": ("etag off;", ranges_only),
    "no ranges": ("max_ranges 0;", whole_files),
    "small pieces": ("sendfile off; output_buffers 1 1k; postpone_output 0; tcp_nodelay on;",
                     ranges_only),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_servers_settings_make_no_difference(name, extract_right, ragged_job, tmp_path):
    setting, check = SETTINGS[name]
    with Nginx(ragged_job.original, tmp_path / "nginx", http=setting) as nginx:
        extract_right(nginx.url + "model/")
    assert check(nginx.log()), nginx.log()


def test_a_server_that_refuses_connections_too_many_is_used_with_fewer(extract_right, ragged_job,
                                                                       tmp_path):
    # Method: 8 connections are wanted, 1 request is served at once, and slowly enough to meet.
    with Nginx(ragged_job.original, tmp_path / "nginx",
               http="limit_conn_zone $binary_remote_addr zone=all:1m; limit_conn all 1;"
                    "limit_rate 400k;") as nginx:
        extract_right(nginx.url + "model/", "--connections", 8)
    assert 503 in {entry["status"] for entry in nginx.log()}


def test_a_server_that_counts_requests_is_asked_more_slowly(extract_right, ragged_job, tmp_path):
    # Method: 429 for what is more than six requests a second and one in reserve; the three heads of the
    # weight files are asked for together.
    with Nginx(ragged_job.original, tmp_path / "nginx",
               http="limit_req_zone $binary_remote_addr zone=all:1m rate=6r/s; limit_req zone=all "
                    "burst=1 nodelay; limit_req_status 429;") as nginx:
        extract_right(nginx.url + "model/", "--connections", 8)
    assert 429 in {entry["status"] for entry in nginx.log()}


# https with an authority of our own.


@pytest.fixture
def https(authority, ragged_job, tmp_path):
    """https(names..., days=2) -> a running nginx whose certificate says so."""
    running = []

    def start(*names, days=2):
        running.append(Nginx(ragged_job.original, tmp_path / "nginx",
                             tls=authority.issue(*names, days=days)).__enter__())
        return running[-1]

    yield start
    for nginx in running:
        nginx.__exit__()


def test_https_trusts_the_authorities_of_the_machine(ragged_job, ragged_digest, https, trusting,
                                                     tmp_path):
    nginx, store = https("127.0.0.1"), tmp_path / "store"
    done = trusting(*ragged_job.extract(nginx.url + "model/", store))
    assert done.returncode == 0, done.stderr
    assert last_run(store)["store_digest"] == ragged_digest


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "CURL_CA_BUNDLE"])
def test_https_trusts_the_file_that_the_environment_names(variable, extract_right, https,
                                                          authority, monkeypatch):
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)  # Goes before the other one.
    nginx = https("127.0.0.1")
    extract_right(nginx.url + "model/", env={variable: str(authority.bundle)})


def test_an_unknown_authority_ends_the_job_at_once(refused, ragged_job, https, tmp_path):
    nginx = https("127.0.0.1")
    refused(*ragged_job.extract(nginx.url + "model/", tmp_path / "store"), exit_code=BAD_INPUT,
            names=[nginx.url, "certificate", "issuer"])
    assert nginx.log() == []


@pytest.mark.parametrize("name,days,word", [("example.org", 2, "host name"),
                                            ("127.0.0.1", -1, "expired")])
def test_a_certificate_that_is_not_good_ends_the_job_at_once(name, days, word, ragged_job, https,
                                                             trusting, tmp_path):
    nginx = https(name, days=days)
    done = trusting(*ragged_job.extract(nginx.url + "model/", tmp_path / "store"))
    assert done.returncode == BAD_INPUT
    assert nginx.url in done.stderr and "certificate is not trusted" in done.stderr
    assert word in done.stderr.partition("(")[2].partition(")")[0], done.stderr
    assert nginx.log() == []


# A forward proxy for plain http.


def proxy_for(root, folder):
    """An nginx that takes requests for any host and answers them itself."""
    return Nginx(root, folder)


def test_a_proxy_is_used_where_the_environment_names_one(extract_right, ragged_job, tmp_path):
    with proxy_for(ragged_job.original, tmp_path / "nginx") as proxy:
        extract_right("http://weights.invalid/model/", "--insecure-http",
                      env={"http_proxy": proxy.url})
    assert {entry["host"] for entry in proxy.log()} == {"weights.invalid"}
    assert all(entry["request"].startswith("GET http://weights.invalid/model/")
               for entry in proxy.log())


def test_a_proxy_is_not_asked_for_this_machine(extract_right, ragged_job, tmp_path):
    # Its "127.0.0.1" would be another machine.
    with proxy_for(tmp_path, tmp_path / "proxy") as proxy, \
            Nginx(ragged_job.original, tmp_path / "nginx") as nginx:
        extract_right(nginx.url + "model/", env={"http_proxy": proxy.url, "all_proxy": proxy.url})
    assert proxy.log() == []


def test_hosts_of_no_proxy_are_asked_directly(extract_right, ragged_job, tmp_path):
    # Method: libcurl itself knows that every name under "localhost" is this machine.
    with proxy_for(tmp_path, tmp_path / "proxy") as proxy, \
            Nginx(ragged_job.original, tmp_path / "nginx") as nginx:
        extract_right(f"http://weights.localhost:{nginx.port}/model/", "--insecure-http",
                env={"http_proxy": proxy.url, "no_proxy": "weights.localhost"})
    assert proxy.log() == []
    assert {entry["host"] for entry in nginx.log()} == {f"weights.localhost:{nginx.port}"}
