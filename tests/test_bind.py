"""Opening and clearing away the sockets of a listener."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest
import trio

from trispool.bind import bound_sockets
from trispool.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def umask() -> object:
    """A umask that takes everything from group and others."""
    before = os.umask(0o077)
    yield
    os.umask(before)


async def test_tcp_sockets_listen_and_are_closed_at_the_end() -> None:
    async with bound_sockets("127.0.0.1:0", 0o660) as bound:
        (address,) = bound.addresses
        host, _, port = address.rpartition(":")
        assert host == "127.0.0.1"
        with socket.create_connection((host, int(port))):
            pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))


async def test_ipv6_and_ipv4_listen_on_one_port_when_no_host_is_given() -> None:
    for attempt in range(20):  # the port that is free for one may be in use for the other
        async with bound_sockets("[::1]:0", 0o660) as bound:
            (address,) = bound.addresses
            port = int(address.removeprefix("[::1]:"))
            with socket.create_connection(("::1", port)):
                pass
        try:
            async with bound_sockets(f":{port}", 0o660) as bound:
                assert sorted(bound.addresses) == [f"0.0.0.0:{port}", f"[::]:{port}"]
                for host in ("127.0.0.1", "::1"):
                    with socket.create_connection((host, port)):
                        pass
            return
        except ConfigError:
            assert attempt < 19


@pytest.mark.parametrize(
    "bind",
    [
        "",
        "3031",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:http",
        "127.0.0.1:99999",
        "::1:3031",
        "[::1:5",
        "no such host:1",
    ],
)
async def test_another_form_is_a_configuration_error_that_shows_it(bind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        async with bound_sockets(bind, 0o660):
            pass
    assert repr(bind) in caught.value.problems[0]


async def test_a_port_in_use_is_a_configuration_error() -> None:
    async with bound_sockets("127.0.0.1:0", 0o660) as bound:
        with pytest.raises(ConfigError, match="in use"):
            async with bound_sockets(bound.addresses[0], 0o660):
                pass


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
@pytest.mark.usefixtures("umask")
async def test_a_unix_socket_has_its_mode_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "s.sock"
    async with bound_sockets(f"unix:{path}", mode) as bound:
        assert bound.addresses == [f"unix:{path}"]
        assert stat.S_IMODE(path.stat().st_mode) == mode
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not path.exists()


async def test_a_unix_socket_never_has_more_than_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.sock"
    seen: list[int] = []
    before = os.umask(0)
    chmod = os.chmod

    def spy(target: str, mode: int) -> None:
        seen.append(stat.S_IMODE(os.stat(target).st_mode))
        chmod(target, mode)

    monkeypatch.setattr("os.chmod", spy)
    try:
        async with bound_sockets(f"unix:{path}", 0o600):
            pass
    finally:
        os.umask(before)
    assert seen == [0o600]


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    async with bound_sockets(f"unix:{path}", 0o660):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


async def test_a_socket_that_somebody_listens_on_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    async with bound_sockets(f"unix:{path}", 0o660):
        for _ in range(2):
            with pytest.raises(ConfigError, match="somebody listens"):
                async with bound_sockets(f"unix:{path}", 0o660):
                    pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


async def test_a_socket_whose_queue_is_full_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(ConfigError, match="somebody listens"):
            async with bound_sockets(f"unix:{path}", 0o660):
                pass
    assert path.exists()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    link = tmp_path / "link"
    link.symlink_to(path)
    for target in (path, link):
        with pytest.raises(ConfigError, match="not a socket"):
            async with bound_sockets(f"unix:{target}", 0o660):
                pass
    assert path.read_text() == "data"
    assert link.is_symlink()


async def test_a_missing_folder_or_a_path_too_long_is_a_configuration_error(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "s.sock", tmp_path / ("x" * 120)):
        with pytest.raises(ConfigError):
            async with bound_sockets(f"unix:{path}", 0o660):
                pass


async def test_the_file_of_a_successor_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    async with bound_sockets(f"unix:{path}", 0o660):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
    assert path.exists()


async def test_everything_is_cleared_away_when_the_block_is_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with trio.CancelScope() as scope:
        async with bound_sockets(f"unix:{path}", 0o660):
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert not path.exists()
