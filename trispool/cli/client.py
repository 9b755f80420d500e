"""A client of the service's HTTP API, over TCP, TLS or a Unix socket; standard library only."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from trispool.errors import ConfigError, TrispoolError
from trispool.printable import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NotAnswering", "Refused", "Service"]

TIMEOUT: Final = 60.0
"""Seconds without a sign of life from a service that has taken our connection."""

_PREFIX: Final = "/api/v1"


class NotAnswering(TrispoolError):
    """The service does not take connections: nothing has been sent."""


class Service:
    """The service that a configuration describes.

    Args:
        bind: Where its API is, as in `[http]`.
        token_path: The file with the token.
        certfile: Its certificate, if it speaks HTTPS. Only who has the key to it is spoken to.
    """

    def __init__(self, bind: str, token_path: str, certfile: str | None = None) -> None:
        self._bind = bind
        self._token_path = token_path
        self._certfile = certfile
        self.url = bind if bind.startswith("unix:") else f"{'https' if certfile else 'http'}://{_reachable(bind)}"

    def get(self, path: str, query: Mapping[str, str | None] | None = None) -> dict[str, Any]:
        """What the API answers at `path`.

        Raises:
            NotAnswering: There is no service.
            TrispoolError: It said no, or broke off.
            ConfigError: The token cannot be read.
        """
        return _document(self.get_bytes(path, query))

    def get_bytes(self, path: str, query: Mapping[str, str | None] | None = None) -> bytes:
        """`get` for what is not JSON."""
        given = {key: value for key, value in (query or {}).items() if value is not None}
        return self._request("GET", f"{_PREFIX}{path}{'?' if given else ''}{urlencode(given)}")

    def post(self, path: str, content: bytes, content_type: str) -> dict[str, Any]:
        """Send something to `path`; the answer. Raises as `get` does."""
        return _document(
            self._request(
                "POST",
                f"{_PREFIX}{path}",
                content,
                {"Content-Type": content_type},
                unknown=" Whether the task is kept is not known.",
            )
        )

    def send(self, method: str, path: str, document: Mapping[str, object] | None) -> dict[str, Any]:
        """Have something changed at `path`; the answer. Raises as `get` does."""
        content = None if document is None else json.dumps(document).encode()
        headers = {} if document is None else {"Content-Type": "application/json"}
        unknown = " Whether it was done is not known."
        return _document(self._request(method, f"{_PREFIX}{path}", content, headers, unknown=unknown))

    def is_healthy(self) -> tuple[bool, list[str]]:
        """Whether the service does its work, and its problems."""
        try:
            document = _document(self._request("GET", "/healthz"))
        except Refused as error:
            document = error.document
        return bool(document.get("ok")), [str(problem) for problem in document.get("problems", ())]

    def _request(
        self,
        method: str,
        target: str,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        unknown: str = "",
    ) -> bytes:
        token = self._token()
        connection = self._connection()
        with contextlib.closing(connection):
            try:
                connection.connect()
            except PermissionError as error:
                raise TrispoolError(f"{self.url}: {error.strerror}") from error
            except ssl.SSLError as error:
                raise TrispoolError(f"{self.url}: {error}") from error
            except OSError as error:
                raise NotAnswering(f"no service at {self.url}: {error.strerror or error}") from error
            try:
                connection.request(method, target, content, {"Authorization": f"Bearer {token}", **(headers or {})})
                answer = connection.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise TrispoolError(f"{self.url} broke off: {error or type(error).__name__}.{unknown}") from error
        if answer.status >= 400:
            raise Refused(answer.status, data)
        return data

    def _token(self) -> str:
        try:
            with open(self._token_path, encoding="ascii") as file:
                return file.read().strip()
        except FileNotFoundError:
            raise NotAnswering(f"no service has run yet: there is no {self._token_path}") from None
        except (OSError, ValueError) as error:
            raise ConfigError([f"{self._token_path}: no token can be read: {error}"]) from error

    def _connection(self) -> http.client.HTTPConnection:
        if self._bind.startswith("unix:"):
            return _UnixConnection(self._bind.removeprefix("unix:"))
        host = _reachable(self._bind)
        if self._certfile is None:
            return http.client.HTTPConnection(host, timeout=TIMEOUT)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # The certificate is known, so it need not be one that the world trusts, nor be for this name.
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(self._certfile)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError([f"http.certfile = {self._certfile!r}: {error}"]) from error
        return http.client.HTTPSConnection(host, timeout=TIMEOUT, context=context)


class Refused(TrispoolError):
    """The service said no."""

    def __init__(self, status: int, data: bytes) -> None:
        try:
            self.document = _document(data)
            detail = str(self.document.get("detail", ""))
        except TrispoolError:
            self.document, detail = {}, data[:200].decode(errors="replace")
        super().__init__(printable(detail) or f"status {status}")


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise TrispoolError("what answered is not trispool")
    return document


def _reachable(bind: str) -> str:
    """Where a service on this machine that is bound so can be reached: "all addresses" is none."""
    host, _, port = bind.rpartition(":")
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return bind if host else f"127.0.0.1:{port}"
    if address.is_unspecified:
        return f"127.0.0.1:{port}" if address.version == 4 else f"[::1]:{port}"
    return bind
