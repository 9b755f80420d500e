"""The configuration: what is read, and what is said of what cannot be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trispool.config import build, load
from trispool.configmodel import SECTIONS, Root, fields_of
from trispool.errors import ConfigError
from trispool.retry import RetryPolicy
from trispool.settings import Config, HttpSettings, ListenSettings, SpoolSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[1]
SPOOL = '[[spool]]\ndirectory = "spool"\n'


NOT_WITHOUT_TLS = "expected a loopback address or certfile and keyfile: tokens must not travel unencrypted"


def read(text: str, **environ: str) -> Config:
    return load(text, base="/etc/trispool", environ=environ)


def problems(text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, **environ)
    return caught.value.problems


def spool(**values: str) -> str:
    """A file with one spool that has these values, written as TOML."""
    return SPOOL + "".join(f"{key.rstrip('_')} = {value}\n" for key, value in values.items())


# What is read


def test_the_shortest_file_has_a_spool_and_defaults() -> None:
    assert read(SPOOL) == Config(
        state_dir="/etc/trispool/var",
        grace_seconds=30.0,
        http=HttpSettings(),
        listen=(),
        spools=(SpoolSettings("default", "/etc/trispool/spool"),),
    )


def test_every_key_reaches_its_setting() -> None:
    config = read(
        """
        state_dir = "state"
        grace_seconds = "1m"
        [http]
        bind = "0.0.0.0:443"
        certfile = "tls/cert.pem"
        keyfile = "/tls/key.pem"
        allow_networks = ["10.0.0.0/8", "fd00::/8"]
        hosts = ["Tasks.example.com", "2001:DB8::0", "srv_1"]
        max_body = "1MiB"
        [[listen]]
        bind = "unix:run/spool.sock"
        mode = "0600"
        reply = "http"
        spool = "second"
        accept_modifiers = [0, 17]
        allow_networks = ["127.0.0.0/8"]
        max_packet = "4KiB"
        max_body = 100
        timeout = "500ms"
        max_connections = 5
        [[listen]]
        bind = ":3031"
        [[spool]]
        directory = "../first"
        [[spool]]
        name = "second"
        directory = "/srv/second"
        import = ["handlers.py", "more/handlers", "app.tasks"]
        processes = 3
        concurrency = 7
        frequency = "2m"
        durability = "os"
        timeout = 1.5
        max_tasks = 1000
        max_attempts = 4
        backoff = ["10s", 60]
        chdir = "work"
        keep_history = 0
        """
    )
    assert config == Config(
        state_dir="/etc/trispool/state",
        grace_seconds=60.0,
        http=HttpSettings(
            "0.0.0.0:443",
            "/etc/trispool/tls/cert.pem",
            "/tls/key.pem",
            ("10.0.0.0/8", "fd00::/8"),
            ("tasks.example.com", "2001:db8::", "srv_1"),
            2**20,
        ),
        listen=(
            ListenSettings(
                "unix:/etc/trispool/run/spool.sock",
                mode=0o600,
                reply="http",
                spool="second",
                accept_modifiers=(0, 17),
                allow_networks=("127.0.0.0/8",),
                max_packet=4096,
                max_body=100,
                timeout=0.5,
                max_connections=5,
            ),
            ListenSettings(":3031"),
        ),
        spools=(
            SpoolSettings("default", "/etc/first"),
            SpoolSettings(
                "second",
                "/srv/second",
                imports=("/etc/trispool/handlers.py", "/etc/trispool/more/handlers", "app.tasks"),
                processes=3,
                concurrency=7,
                frequency=120.0,
                durability="os",
                timeout=1.5,
                max_tasks=1000,
                policy=RetryPolicy(4, (10.0, 60.0)),
                chdir="/etc/trispool/work",
                keep_history=0.0,
            ),
        ),
    )


def test_the_settings_are_the_defaults_that_the_parts_have_themselves() -> None:
    config = read(SPOOL + '[[listen]]\nbind = "127.0.0.1:3031"\n')
    assert config.listen == (ListenSettings(),)


@pytest.mark.parametrize(
    ("written", "backoff"),
    [
        ('"frequency"', "frequency"),
        ('"exponential"', "exponential"),
        ('"30s"', 30.0),
        ("45", 45.0),
        ('["10s", "1m", "10m"]', (10.0, 60.0, 600.0)),
    ],
)
def test_backoff_has_four_forms(written: str, backoff: object) -> None:
    assert read(spool(backoff=written)).spools[0].policy == RetryPolicy(0, backoff)  # type: ignore[arg-type] # any form


def test_an_external_spool_has_no_workers() -> None:
    settings = read(spool(external="true")).spools[0]
    assert settings.external
    assert settings.processes == 0


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "[::1]:8080", "localhost:80", "unix:/run/x.sock", "127.8.8.8:1"])
def test_what_only_this_machine_reaches_needs_no_certificate(bind: str) -> None:
    assert read(f'{SPOOL}[http]\nbind = "{bind}"').http.bind == bind


# The file of the repository


def test_the_commented_file_is_good() -> None:
    config = load((ROOT / "config.toml").read_text(), base=ROOT, environ={})
    assert config.spools[0].imports == (str(ROOT / "examples/handlers.py"),)
    assert all(Path(target).exists() for target in config.spools[0].imports)
    assert config.listen == (ListenSettings(),)


def test_the_commented_file_shows_every_key_with_its_default() -> None:
    """What is commented out in it, taken in, changes nothing; and it leaves no key out."""
    text = (ROOT / "config.toml").read_text()
    shown: dict[str, dict[str, str]] = {}
    section = ""
    for line in text.splitlines():
        if match := re.fullmatch(r"(?:# )?\[+(\w+)\]+", line):
            section = match[1]
        elif match := re.match(r"(?:# )?(\w+) = (\"[^\"]*\"|\[[^\]]*\]|[\w.]+)(?: +#.*)?$", line):
            shown.setdefault(section, {})[match[1]] = match[2]
    assert shown[""].keys() == fields_of(Root).keys() - SECTIONS.keys()
    for name, model in SECTIONS.items():
        assert shown[name].keys() == fields_of(model).keys()
    examples = {"certfile", "keyfile", "allow_networks", "hosts", "database", "spool"}
    written = "\n".join(
        [
            *(f"{key} = {value}" for key, value in shown[""].items()),
            "[http]",
            *(f"{key} = {value}" for key, value in shown["http"].items() if key not in examples),
            "[[listen]]",
            *(f"{key} = {value}" for key, value in shown["listen"].items() if key not in examples | {"bind"}),
            'bind = "127.0.0.1:3031"',
            "[[spool]]",
            *(f"{key} = {value}" for key, value in shown["spool"].items() if key not in examples),
        ]
    )
    assert load(written, base=ROOT, environ={}) == load(text, base=ROOT, environ={})


# What is said


def test_all_problems_are_said_at_once_with_key_value_and_expectation() -> None:
    assert problems(
        """
        grace_secnds = 3
        state_dir = 5
        [http]
        bind = "0.0.0.0:8080"
        max_body = "64 MBs"
        [[listen]]
        spool = "nowhere"
        mode = 660
        [[spool]]
        directory = "a"
        frequency = -1
        processes = "2"
        [[spool]]
        name = "other"
        directory = "./a"
        """
    ) == [
        "state_dir = 5: expected the path of a directory",
        'http.max_body = "64 MBs": expected a size, such as 65536, "512KiB" or "64MiB"',
        'listen[0].mode = 660: expected the permissions of a Unix socket as an octal text, such as "0660"',
        'spool[0].processes = "2": expected a whole number from 1 up',
        'spool[0].frequency = -1: expected a length of time of 10 ms or more, such as 30 or "1m"',
        "grace_secnds: unknown key; did you mean grace_seconds?",
        f'http.bind = "0.0.0.0:8080": {NOT_WITHOUT_TLS}',
        'listen[0].spool = "nowhere": expected the name of a spool: default, other',
        'listen[0].bind: missing; expected an address such as "127.0.0.1:3031" or "unix:var/spool.sock"',
        'spool[1].directory = "./a": expected a directory of its own; spool[0] has it',
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "spool: expected at least one [[spool]]"),
        ("spool = 3", "spool = 3: expected tables, each written [[spool]]"),
        ('[spool]\ndirectory = "a"', 'spool = {"directory": "a"}: expected tables, each written [[spool]]'),
        ("spool = [3]", "spool[0] = 3: expected tables, each written [[spool]]"),
        ("[[spool]]", "spool[0].directory: missing; expected the path of a directory"),
        (f"http = 1\n{SPOOL}", "http = 1: expected a table, written [http]"),
        (spool(directroy='"x"'), "spool[0].directroy: unknown key; did you mean directory?"),
        (spool(certfile='"x"'), "spool[0].certfile: unknown key; its place is [http]"),
        (
            spool(grace_seconds="1"),
            "spool[0].grace_seconds: unknown key; its place is the top of the file, before all tables",
        ),
        (
            f"{SPOOL}[http]\nzzz = 1",
            "http.zzz: unknown key; expected bind, certfile, keyfile, allow_networks, hosts, max_body",
        ),
        (
            f"{SPOOL}[http]\n'a b' = 1",
            'http."a b": unknown key; expected bind, certfile, keyfile, allow_networks, hosts, max_body',
        ),
        (
            spool(frequency="0"),
            'spool[0].frequency = 0: expected a length of time of 10 ms or more, such as 30 or "1m"',
        ),
        (
            spool(frequency="inf"),
            'spool[0].frequency = Infinity: expected a length of time of 10 ms or more, such as 30 or "1m"',
        ),
        (spool(processes="0"), "spool[0].processes = 0: expected a whole number from 1 up"),
        (spool(processes="true"), "spool[0].processes = true: expected a whole number from 1 up"),
        (spool(external="1"), "spool[0].external = 1: expected true or false"),
        (spool(durability='"disk"'), 'spool[0].durability = "disk": expected "fsync" or "os"'),
        (
            spool(import_='"x.py"'),
            'spool[0].import = "x.py": expected a list of files and modules, such as ["handlers.py", "app.tasks"]',
        ),
        (
            spool(backoff="[]"),
            'spool[0].backoff = []: expected "frequency", "exponential", a length of time such as "30s", '
            'or a list such as ["10s", "5m"]',
        ),
        (
            spool(keep_history="1979-05-27"),
            'spool[0].keep_history = 1979-05-27: expected 0 (for ever) or a length of time, such as "30d"',
        ),
        (
            spool(name='"a/b"'),
            'spool[0].name = "a/b": expected letters, digits, _ . and -, 64 at most, beginning with a letter, '
            "digit or _",
        ),
        (
            spool() + spool(),
            'spool[1].directory = "spool": expected a directory of its own; spool[0] has it',
        ),
        (
            f'{SPOOL}[http]\nallow_networks = ["10.0.0.1/8"]',
            'http.allow_networks[0] = "10.0.0.1/8": expected a network such as 10.0.0.0/8, without host bits',
        ),
        (f'{SPOOL}[http]\nkeyfile = "k"', 'http.keyfile = "k": expected certfile beside it'),
        (
            f'{SPOOL}[http]\nbind = "unix:a"\ncertfile = "k"',
            'http.certfile = "k": expected none: a Unix socket speaks plain HTTP',
        ),
        (
            f'{SPOOL}[http]\nbind = ":8080"',
            f'http.bind = ":8080": {NOT_WITHOUT_TLS}',
        ),
        (
            f'{SPOOL}[http]\nbind = "example.org:8080"',
            f'http.bind = "example.org:8080": {NOT_WITHOUT_TLS}',
        ),
        (
            f'{SPOOL}[http]\nbind = "8080"',
            'http.bind = "8080": expected an address such as "127.0.0.1:8080", "[::1]:8080" or "unix:var/admin.sock"',
        ),
        (
            f'{SPOOL}[[listen]]\nbind = "127.0.0.1:8080"',
            'listen[0].bind = "127.0.0.1:8080": expected an address of its own; http has it',
        ),
        (
            f'{SPOOL}[[listen]]\nbind = "unix:x"\n[[listen]]\nbind = "unix:./x"',
            'listen[1].bind = "unix:./x": expected an address of its own; listen[0] has it',
        ),
        (
            f'{SPOOL}[[listen]]\nbind = "unix:x"\nmax_packet = 65536',
            "listen[0].max_packet = 65536: expected a size from 1 to 65535, the most that the protocol allows",
        ),
        (
            f'{SPOOL}[[listen]]\nbind = "unix:x"\naccept_modifiers = [256]',
            "listen[0].accept_modifiers[0] = 256: expected a list of numbers from 0 to 255, such as [0, 17]",
        ),
        (
            '[[spool]]\ndatabase = "postgresql://me:secret@host/db"',
            "spool[0].database: PostgreSQL comes in a later version; expected directory in its place",
        ),
    ],
)
def test_what_is_wrong_is_said(text: str, problem: str) -> None:
    assert problem in problems(text)


def test_names_of_spools_are_unique() -> None:
    assert problems(f'{SPOOL}[[spool]]\ndirectory = "b"') == [
        "spool[1].name: expected a name of its own; spool[0] has default"
    ]


@pytest.mark.parametrize(
    "bind",
    ["127.0.0.1", "1.2.3:80", "::1:80", "[::g]:80", "host:65536", "host:", "unix:", "a b:80", "host:8o", "[]:80"],
)
def test_what_is_no_address_is_refused(bind: str) -> None:
    [problem] = problems(f'{SPOOL}[[listen]]\nbind = "{bind}"')
    assert problem.startswith(f'listen[0].bind = "{bind}": expected an address such as')


def test_a_socket_path_that_the_system_cannot_take_is_refused() -> None:
    text = f'{SPOOL}[[listen]]\nbind = "unix:{{}}"'
    just_fits = "x" * (107 - len("/etc/trispool/"))
    read(text.format(just_fits))
    [problem] = problems(text.format(just_fits + "x"))
    assert "at most 107 bytes" in problem


def test_a_file_that_is_not_toml_is_said_to_be_none_with_its_place() -> None:
    [problem] = problems("a = [")
    assert problem.startswith("not TOML: ")
    assert "end of document" in problem


@pytest.mark.parametrize("number", ["9" * 400, "9" * 5000, "0x" + "f" * 5000, str(2**63)])
def test_a_number_that_nobody_can_hold_is_a_problem_like_others(number: str) -> None:
    [problem] = problems(f"grace_seconds = {number}\n{SPOOL}")
    assert problem.startswith("not TOML: ")
    for expected in (f'grace_seconds = "{number[:10]}', "listen[0].accept_modifiers"):
        listen = f'{SPOOL}[[listen]]\nbind = "127.0.0.1:1"'
        found = problems(listen, TRISPOOL_GRACE_SECONDS=number, TRISPOOL_LISTEN_0_ACCEPT_MODIFIERS=number)
        assert any(problem.startswith(expected) for problem in found)


def test_a_variable_that_is_nested_too_deep_is_a_text_like_others() -> None:
    [problem] = problems(SPOOL, TRISPOOL_GRACE_SECONDS="[" * 100_000)
    assert problem.startswith('grace_seconds = "[[[')


def test_a_long_value_is_cut_in_the_message() -> None:
    [problem] = problems(spool(durability=f'"{"x" * 1000}"'))
    assert len(problem) < 150


# The environment


def test_the_environment_goes_before_the_file() -> None:
    config = read(
        '[http]\nbind = "unix:a"\n[[listen]]\nbind = "unix:b"\n[[spool]]\nname = "my-spool.1"\ndirectory = "s"',
        TRISPOOL_STATE_DIR="/elsewhere",
        TRISPOOL_GRACE_SECONDS="5",
        TRISPOOL_HTTP_BIND="127.0.0.1:1",
        TRISPOOL_HTTP_ALLOW_NETWORKS="10.0.0.0/8, fd00::/8",
        TRISPOOL_LISTEN_0_ACCEPT_MODIFIERS="0,17",
        TRISPOOL_LISTEN_0_MODE="0666",
        TRISPOOL_SPOOL_MY_SPOOL_1_PROCESSES="7",
        TRISPOOL_SPOOL_MY_SPOOL_1_IMPORT='["a.py", "b"]',
        TRISPOOL_SPOOL_MY_SPOOL_1_EXTERNAL="false",
        TRISPOOL_SPOOL_MY_SPOOL_1_BACKOFF="1m",
    )
    assert config.state_dir == "/elsewhere"
    assert config.grace_seconds == 5.0
    assert config.http.bind == "127.0.0.1:1"
    assert config.http.allow_networks == ("10.0.0.0/8", "fd00::/8")
    assert config.listen[0].accept_modifiers == (0, 17)
    assert config.listen[0].mode == 0o666
    assert config.spools[0].processes == 7
    assert config.spools[0].imports == ("/etc/trispool/a.py", "b")
    assert config.spools[0].policy.backoff == 60.0


def test_the_environment_can_bring_a_section() -> None:
    assert read(SPOOL, TRISPOOL_HTTP_BIND="unix:/run/x").http.bind == "unix:/run/x"


def test_an_empty_variable_counts_as_not_set() -> None:
    assert read(SPOOL, TRISPOOL_HTTP_BIND="").http == HttpSettings()


def test_a_problem_names_the_variable_it_comes_from() -> None:
    assert problems(SPOOL, TRISPOOL_SPOOL_DEFAULT_PROCESSES="many", TRISPOOL_GRACE_SECONDS="-1") == [
        'grace_seconds = "-1" (from TRISPOOL_GRACE_SECONDS): expected a length of time, such as 30, '
        '"30s", "5m" or "2h"',
        'spool[0].processes = "many" (from TRISPOOL_SPOOL_DEFAULT_PROCESSES): expected a whole number from 1 up',
    ]


@pytest.mark.parametrize("name", ["TRISPOOL_HTTP_BINDD", "TRISPOOL_SPOOL_NONE_PROCESSES", "TRISPOOL_LISTEN_3_BIND"])
def test_a_variable_that_means_no_key_is_a_problem(name: str) -> None:
    assert problems(SPOOL, **{name: "x"}) == [f"{name}: unknown variable; no key of the configuration is called so"]


@pytest.mark.parametrize(
    "environ",
    [
        {"TRISPOOL_SPOOL": "/x", "TRISPOOL_DURABILITY": "os"},
        {"TRISPOOL_HTTP_PORT": "tcp://10.0.0.1:80", "TRISPOOL_HTTP_SERVICE_HOST": "10.0.0.1"},
        {"HTTP_BIND": "x", "PATH": "/bin"},
    ],
)
def test_variables_of_others_are_left_alone(environ: Mapping[str, str]) -> None:
    assert load(SPOOL, base="/etc/trispool", environ=environ) == read(SPOOL)


def test_what_is_given_goes_before_the_environment_and_is_named() -> None:
    data = {"http": {"bind": "x"}, "spool": [{"directory": "s"}]}
    with pytest.raises(ConfigError) as caught:
        build(data, base="/", environ={"TRISPOOL_HTTP_BIND": "unix:y"}, given={("http", "bind"): "--http"})
    [problem] = caught.value.problems
    assert problem.startswith('http.bind = "x" (from --http): expected')


# Whatever comes

toml_values = st.recursive(
    st.one_of(
        st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.sampled_from(["frequency", "1m"])
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def tables(section: str) -> st.SearchStrategy[object]:
    keys = st.sampled_from([*fields_of(SECTIONS[section]), "unknown"])
    return st.dictionaries(keys, toml_values, max_size=6) | toml_values


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "state_dir": toml_values,
            "grace_seconds": toml_values,
            "http": tables("http"),
            "listen": st.lists(tables("listen"), max_size=3) | toml_values,
            "spool": st.lists(tables("spool"), max_size=3) | toml_values,
            "x": toml_values,
        },
    )
)
def test_any_data_give_a_configuration_or_problems(data: dict[str, object]) -> None:
    found: list[str] = []
    try:
        assert build(data, base="/base", environ={"TRISPOOL_HTTP_MAX_BODY": "1"}).spools
    except ConfigError as error:
        found = error.problems or [""]
    assert all(problem and "\n" not in problem for problem in found)


@pytest.mark.parametrize("host", ["https://tasks.example.com", "a:80", "[::1]", "", "*", "a.", "-a", "a..b", "a" * 254])
def test_a_host_is_a_name_or_an_address_without_port(host: str) -> None:
    (problem,) = problems(f'{SPOOL}[http]\nhosts = ["{host}"]')
    assert problem.startswith("http.hosts[0] = ")
    assert "expected a list of host names without port" in problem
