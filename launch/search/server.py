"""The page of `rumpun search`, served to this machine alone.

Invariant: it listens on 127.0.0.1 only, and an answer needs two things that a page of somebody else cannot have: the
token of the address (other users of a shared machine reach the port too), and a Host of this machine (a name on the
internet may be made to point here). It only ever answers GET and HEAD, and changes nothing.
"""

from __future__ import annotations

import errno
import secrets
import socketserver
import sys
import traceback
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from data_prep.errors import UserError

ADDRESS = "127.0.0.1"
PORT = 8765
"""Where the page is, unless --port says otherwise; 0 lets the system choose."""
_HOSTS = {"127.0.0.1", "localhost"}
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
Answer = Callable[[dict[str, list[str]]], str]
"""The fields of the form → the page."""


class PageServer(ThreadingHTTPServer):
    """Listens from the start, so that a port in use is told before a model is loaded; `answer` comes later.

    Args:
        port: to listen on; 0 for any that is free.

    Raises:
        UserError: the port is in use or forbidden.
    """

    daemon_threads = True
    answer: Answer

    def __init__(self, port: int) -> None:
        self.token = secrets.token_urlsafe(18)
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
                rule = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
                raise UserError(f"--port {port}", rule, "give another, or --port 0 for any that is free") from error
            raise

    def server_bind(self) -> None:
        """Bind without asking a name server for our own name, which may take seconds and is not needed."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away is no error; anything else is told in the terminal."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            traceback.print_exc()

    @property
    def url(self) -> str:
        """The address with its token."""
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"


def serve(server: PageServer) -> None:
    """Answer until ^C, then give the port back."""
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print("\nthe page has ended", file=sys.stderr)
    finally:
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "rumpun", ""
    timeout = 30  # seconds for a browser that says nothing

    def do_GET(self) -> None:
        self._respond(body=True)

    def do_HEAD(self) -> None:
        self._respond(body=False)

    def _respond(self, *, body: bool) -> None:
        status, page = self._page()
        data = page.encode("utf-8", errors="replace")
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _page(self) -> tuple[HTTPStatus, str]:
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
            address = urlsplit(self.path)
            fields = parse_qs(address.query, keep_blank_values=True, max_num_fields=20)
        except ValueError:
            return HTTPStatus.BAD_REQUEST, "this address cannot be read"
        if host not in _HOSTS:
            return HTTPStatus.MISDIRECTED_REQUEST, "this page answers to 127.0.0.1 only"
        given = address.path.strip("/").encode("utf-8", errors="replace")
        if not secrets.compare_digest(given, self.server.token.encode()):
            return HTTPStatus.NOT_FOUND, "take the whole address that the terminal shows"
        try:
            return HTTPStatus.OK, self.server.answer(fields)
        except Exception:  # one bad answer must not end the page; the terminal has the details
            traceback.print_exc()
            return HTTPStatus.INTERNAL_SERVER_ERROR, "this query failed; the terminal says why"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: addresses carry the token and the queries."""
