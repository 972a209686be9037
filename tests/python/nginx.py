"""A real nginx for tests: its own configuration in a temporary folder, a free port, no root needed.

    with Nginx(root, folder, http="gzip on;", tls=authority.issue("localhost")) as nginx:
        fetch(nginx.url + "model/config.json")
    nginx.log()                                   # one dict per request

`Authority` makes certificates with the program openssl.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import time
from dataclasses import dataclass

START_SECONDS_MAX = 20

# Everything that nginx writes is below the folder. The access log says which connection a request
# came on ($connection counts them) and how much of an answer was body.
CONFIGURATION = """
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log notice;
events {{ worker_connections 256; }}
http {{
  log_format fields escape=json '{{"path":"$uri","host":"$http_host","range":"$http_range",'
    '"status":$status,"body_bytes":$body_bytes_sent,"connection":$connection,'
    '"connection_requests":$connection_requests,"coding":"$sent_http_content_encoding",'
    '"request":"$request","protocol":"$ssl_protocol"}}';
  access_log {folder}/access.log fields;
  types {{ application/json json; }}
  default_type application/octet-stream;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {http}
  server {{
    listen {bind}:{port}{tls};
    root {root};
    {server}
  }}
}}
"""


def find_nginx():
    """Path of the program, or None. A user's PATH often lacks the folders for root's programs."""
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


@dataclass
class Certificate:
    certificate: pathlib.Path
    key: pathlib.Path

    def context(self):
        """For a server written in Python."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


class Authority:
    """A certificate authority of our own in `folder`; the file `bundle` is what trusts it."""

    def __init__(self, folder):
        self._folder = pathlib.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self.bundle = self._folder / "authority.pem"
        self._key = self._folder / "authority.key"
        self._openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                      "-nodes", "-days", "2", "-subj", "/CN=Test Authority", "-keyout", self._key,
                      "-out", self.bundle)

    def issue(self, *names, days=2):
        """A certificate for host names and addresses; with days=0 it has expired."""
        base = self._folder / f"{names[0]}-{days}"
        certificate, key, request = (base.with_name(base.name + suffix)
                                     for suffix in (".pem", ".key", ".csr"))
        self._openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                      "-subj", f"/CN={names[0]}", "-keyout", key, "-out", request)
        extensions = base.with_name(base.name + ".ext")
        extensions.write_text("subjectAltName=" + ",".join(
            f"{'IP' if name.replace('.', '').isdigit() else 'DNS'}:{name}" for name in names))
        self._openssl("x509", "-req", "-in", request, "-CA", self.bundle, "-CAkey", self._key,
                      "-CAcreateserial", "-days", str(days), "-extfile", extensions,
                      "-out", certificate)
        return Certificate(certificate, key)

    @staticmethod
    def _openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Nginx:
    """One nginx with one server. `http` and `server` are more lines of those two blocks."""

    def __init__(self, root, folder, *, http="", server="", tls=None, bind="127.0.0.1"):
        self.folder = pathlib.Path(folder)
        self._socket = socket.create_server((bind, 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{bind}:{self.port}/"
        if tls:
            server = f"ssl_certificate {tls.certificate};ssl_certificate_key {tls.key};" + server
        # A worker that root starts would be "nobody", who may not see the test's files.
        user = "user root;" if os.geteuid() == 0 else ""
        self._text = CONFIGURATION.format(
            folder=self.folder, root=pathlib.Path(root).resolve(), http=http, server=server,
            bind=bind, port=self.port, tls=" ssl" if tls else "", user=user)
        self._process = None

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "nginx.conf"
        configuration.write_text(self._text)
        # It inherits our socket, as from an older nginx: so nobody can take the port before it.
        self._process = subprocess.Popen(
            [find_nginx(), "-p", self.folder, "-c", configuration, "-e", self.folder / "error.log"],
            pass_fds=[self._socket.fileno()],
            env=os.environ | {"NGINX": f"{self._socket.fileno()};"}, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        self._socket.close()
        deadline = time.monotonic() + START_SECONDS_MAX
        while not (self.folder / "nginx.pid").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"nginx does not start: {self.errors()}")
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        """Stop the master, which stops its worker."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait(START_SECONDS_MAX)

    def log(self):
        """A dict per finished request, in the order of their ends. Complete once it has stopped."""
        return [json.loads(line) for line in (self.folder / "access.log").read_text().splitlines()]

    def errors(self):
        log = self.folder / "error.log"
        return log.read_text() if log.exists() else ""
