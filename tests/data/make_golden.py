"""Makes golden.json anew with a real uWSGI and a real nginx; see README.md.

Needs Linux and root, for a host name of its own:

unshare --uts python tests/data/make_golden.py
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

CASES: dict[str, dict[str, str]] = {
    "one var": {"handler": "hello"},
    "no vars": {},
    "empty value": {"name": ""},
    "body": {"handler": "hello", "body": "00 and more \n"},
    "at with a fraction": {"handler": "hello", "at": "4102444800.75"},
    "priority": {"handler": "hello", "priority": "7"},
    "ten vars": {f"key {n}": "v" * n for n in range(10)},
    "a value of 300 bytes": {"big": "x" * 300},
    "a value longer than a signed 16-bit number": {"big": "x" * 33000},
    "bytes that are no text": {"\xff\x00": "\x00\xfe"},
}

PRODUCER = """
import json, os, uwsgi
for name, vars in json.loads(os.environ["CASES"]).items():
    path = uwsgi.spool({k.encode("latin-1"): v.encode("latin-1") for k, v in vars.items()})
    with open(os.environ["WRITTEN"], "a") as index:
        print(json.dumps([name, path.decode()]), file=index)
def application(env, start_response): return []
"""

NGINX = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr;
events {{ worker_connections 16; }}
http {{
    access_log off; client_body_temp_path body; uwsgi_temp_path uwsgi; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port};
        location /bare {{ uwsgi_pass 127.0.0.1:{capture}; uwsgi_modifier1 17; uwsgi_param handler hello; }}
        location /params {{
            uwsgi_pass 127.0.0.1:{capture}; uwsgi_modifier1 17; uwsgi_param handler hello;
            uwsgi_param CONTENT_LENGTH $content_length; uwsgi_param REQUEST_METHOD $request_method;
        }}
    }}
}}
"""

WEB_REQUESTS: dict[str, bytes] = {
    "GET": b"GET {} HTTP/1.1\r\nHost: golden\r\nConnection: close\r\n\r\n",
    "POST": b"POST {} HTTP/1.1\r\nHost: golden\r\nContent-Length: 10\r\nConnection: close\r\n\r\n0123456789",
    "chunked POST": b"POST {} HTTP/1.1\r\nHost: golden\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    b"a\r\n0123456789\r\n0\r\n\r\n",
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], ports: list[int], folder: Path, **environment: str) -> Iterator[None]:
    """A server that listens on `ports`, ended at the end."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, env=os.environ | environment
    )
    try:
        for port in ports:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                if process.poll() is not None:
                    raise SystemExit(f"{command[0]} ended with {process.returncode}")
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def ask(port: int, data: bytes) -> bytes:
    """What a server answers to `data` until it closes."""
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(data)
        answer = b""
        while more := client.recv(65536):
            answer += more
        return answer


def spool_files(uwsgi: str, folder: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Files that uWSGI's `uwsgi.spool` wrote, and its answers on its socket."""
    spool = folder / "spool"
    spool.mkdir()
    (folder / "producer.py").write_text(PRODUCER)
    port = free_port()
    command = [
        uwsgi,
        "--master",
        "--lazy-apps",
        "--workers",
        "1",
        "--socket",
        f"127.0.0.1:{port}",
        "--spooler",
        str(spool),
    ]
    # Lazy, so that only the one worker runs the producer, and the spooler has no handler that could take the files.
    command += ["--die-on-term", "--spooler-frequency", "3600", "--wsgi-file", "producer.py"]
    with running(command, [port], folder, CASES=json.dumps(CASES), WRITTEN=str(folder / "written")):
        deadline = time.monotonic() + 20
        while not (folder / "written").exists() or len((folder / "written").read_text().splitlines()) < len(CASES):
            if time.monotonic() > deadline:
                raise SystemExit("uWSGI did not write its files")
            time.sleep(0.05)
        files = []
        for line in (folder / "written").read_text().splitlines()[: len(CASES)]:
            case, path = json.loads(line)
            files.append(
                {
                    "case": case,
                    "name": os.path.basename(path),
                    "folder": os.path.relpath(os.path.dirname(path), spool),
                    "mtime": os.stat(path).st_mtime,
                    "mode": oct(os.stat(path).st_mode & 0o777),
                    "hex": Path(path).read_bytes().hex(),
                    "vars": {key: value for key, value in CASES[case].items() if key != "body"},
                    "body": CASES[case].get("body", ""),
                }
            )
        packets = {"spool": "110b0000" + "0100610600" + b"sunday".hex(), "ping": "64000000"}
        answers = {packet: ask(port, bytes.fromhex(packet)).hex() for packet in packets.values()}
    return files, answers


def captured(server: socket.socket, port: int, request: bytes) -> bytes:
    """The packet that a web server on `port` sends to `server` for a request."""
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(request)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(0.3)
            data = b""
            with contextlib.suppress(TimeoutError):
                while more := connection.recv(65536):
                    data += more
            return data


def web_packets(uwsgi: str, folder: Path) -> list[dict[str, Any]]:
    """What nginx and uWSGI's own HTTP router send."""
    packets = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        capture, port, router = server.getsockname()[1], free_port(), free_port()
        (folder / "nginx.conf").write_text(NGINX.format(port=port, capture=capture))
        nginx = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
        http = [uwsgi, "--master", "--http", f"127.0.0.1:{router}", "--http-to", f"127.0.0.1:{capture}"]
        http += ["--die-on-term", "--http-modifier1", "17"]
        for by, command, at, paths in (("nginx", nginx, port, ("/bare", "/params")), ("uWSGI", http, router, ("/",))):
            with running(command, [at], folder):
                for path in paths:
                    for kind, request in WEB_REQUESTS.items():
                        data = captured(server, at, request.replace(b"{}", path.encode()))
                        packets.append({"case": f"{by} {path} {kind}", "hex": data.hex()})
    return packets


def main() -> None:
    socket.sethostname("golden_host")
    uwsgi = shutil.which("uwsgi", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    if uwsgi is None:
        raise SystemExit("no uwsgi")
    with tempfile.TemporaryDirectory() as folder:
        files, answers = spool_files(uwsgi, Path(folder))
        golden = {"spool_files": files, "answers": answers, "packets": web_packets(uwsgi, Path(folder))}
    Path(__file__).with_name("golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
