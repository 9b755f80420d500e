"""How new connections come in, and whose place they take when there are as many as may be. Knows no Trio."""

from __future__ import annotations

import contextlib
from socket import SocketType
from typing import TYPE_CHECKING, Final

from trispool.bind import ERRORS_OF_ONE_CONNECTION, SHORT_OF_RESOURCES, allowed
from trispool.connection import Connection
from trispool.errors import SpoolUnavailable, TaskRefused

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from trispool.intake import Intake
    from trispool.openconnections import OpenConnections
    from trispool.settings import ListenSettings

__all__ = ["Acceptor"]

RECEIVE_BYTES: Final = 0xFFFF + 4
"""Of a request that is refused at once: a packet of the largest size, to see whether a web server has sent it."""


class Acceptor:
    """Takes what comes to the sockets of one listener.

    Args:
        settings: The listener's.
        intake: Makes the answers to those that are refused.
        open: Gets the others.

    Attributes:
        accepted: How many connections were accepted, those refused included.
        is_short: Set when accepting failed for lack of descriptors or memory, for whoever can let it rest.
    """

    def __init__(self, settings: ListenSettings, intake: Intake, open: OpenConnections) -> None:
        self._intake = intake
        self._open = open
        self._most = settings.max_connections
        self._is_allowed = allowed(settings.allow_networks)
        self.accepted = 0
        self.is_short = False

    def accept(self, listening: socket.socket, most: int) -> Iterator[Connection]:
        """New connections of a socket, not more than `most`."""
        family, kind = listening.family, listening.type
        for _ in range(most):
            try:
                # Not accept(): the Python object that it makes of a socket costs a tenth of all that a request costs.
                descriptor, address = listening._accept()  # type: ignore[attr-defined] # not in typeshed
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in SHORT_OF_RESOURCES:
                    self._intake.count("resources", "", f"accepting pauses: {error}")
                    self.is_short = True
                    break
                if error.errno in ERRORS_OF_ONE_CONNECTION:
                    continue
                raise
            self.accepted += 1
            sock = SocketType(family, kind, 0, descriptor)
            connection = Connection(sock, address, self._intake.new_reader, self._open.now)
            if self._is_allowed and isinstance(address, tuple) and not self._is_allowed(address[0]):
                self._intake.count("network", connection.peer, "its network is not among allow_networks")
                sock.close()
            elif len(self._open) >= self._most and not self._open.end_one():
                self._turn_away(connection)
            else:
                self._open[connection.fd] = connection
                yield connection

    def _turn_away(self, connection: Connection) -> None:
        """Refuse a connection without having room for it."""
        error = SpoolUnavailable(f"{self._most} connections are open, max_connections allows no more")
        connection.reader.receive_data(connection.receive(RECEIVE_BYTES) or b"")
        with contextlib.suppress(TaskRefused):
            connection.reader.next_event()  # so that its vars are known
        connection.send(self._intake.refuse(connection, error, reason="connections"))
        connection.close()
