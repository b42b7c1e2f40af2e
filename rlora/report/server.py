"""The live page of a run, served to browsers of this machine that know its token."""

import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from urllib.parse import parse_qs, urlsplit

from rlora.errors import ConfigError, RloraError
from rlora.report.live import LiveRun
from rlora.report.write import json_text


class LiveServer(ThreadingHTTPServer):
    """Serves the page of one run at `address`, and what is new of it; anything without the token is refused."""

    daemon_threads = True

    def __init__(self, live: LiveRun, *, host: str, port: int):
        """Listen; ConfigError where the port cannot be had. Port 0 takes any that is free."""
        self.live, self.token, self.lock = live, secrets.token_urlsafe(16), Lock()
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"port {port} of {host} cannot be had ({error.strerror}): another --port, or 0 for any that is free."
            ) from error

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        host, port = self.server_address[:2]
        named = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{named}:{port}/?token={self.token}"


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "rlora", ""

    def do_GET(self) -> None:
        """Answer with the page, or with what is new."""
        assert isinstance(self.server, LiveServer)
        asked = urlsplit(self.path)
        query = parse_qs(asked.query)
        if not secrets.compare_digest(query.get("token", [""])[0].encode(), self.server.token.encode()):
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "This address lacks its token.")
        elif asked.path == "/":
            with self.server.lock:
                page = self.server.live.page(f"/more?token={self.server.token}")
            self._answer(HTTPStatus.OK, "text/html", page)
        elif asked.path == "/more":
            try:
                with self.server.lock:
                    more = self.server.live.more(query.get("after", [""])[0])
            except RloraError as error:  # a run that goes back, or is moved: told, and asked again
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", str(error))
            else:
                self._answer(HTTPStatus.OK, "application/json", json_text(more))
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "There is nothing here.")

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode("utf-8", errors="backslashreplace")
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of requests: a page asks every two seconds."""
