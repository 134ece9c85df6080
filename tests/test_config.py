from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from pilotq.cli.info import to_toml
from pilotq.config import TABLE, Endpoint, Facts, load
from pilotq.errors import UserError
from pilotq.model import Resources

ROOT = Path(__file__).parent.parent
FACTS = Facts(home_dir="/home/u", host="node7", cpus=4, memory_bytes=8 << 30, disk_bytes=1 << 40, cwd="/somewhere")


def test_defaults_are_those_of_alien_workqueue() -> None:
    settings = load({}, facts=FACTS)
    assert (settings.master_host, settings.master_port) == ("127.0.0.1", 9094)
    assert (settings.foreman_hosts, settings.foreman_count, settings.foreman_base_port) == (("127.0.0.1",), 2, 9080)
    assert settings.worker_workdir == "/home/u/.alien_wq_tmp"
    assert settings.worker_drain_file == "/home/u/.alien_wq_drain"
    assert settings.worker_idle_timeout_s == 100
    assert not settings.worker_single_task
    assert settings.home == "/home/u/.pilotq"
    assert settings.worker_token == "/home/u/.pilotq/worker.token"
    assert settings.instance == "node7"
    assert settings.given == frozenset()


def test_the_later_source_wins() -> None:
    toml = "[worker]\ncores = 1\nidle_timeout_s = '1h'\nsingle_task = true\n"
    environ = {"WQ_NUM_WORKERS": "2", "WQ_IDLETIMEOUT": "5"}
    assert load({}, toml).worker_idle_timeout_s == 3600
    assert load({}, toml).worker_single_task
    assert load(environ, toml).worker_cores == 2
    assert load({**environ, "PILOTQ_WORKER_CORES": "3"}, toml).worker_cores == 3
    settings = load({**environ, "PILOTQ_WORKER_CORES": "3"}, toml, {"worker.cores": "4"})
    assert settings.worker_cores == 4
    assert settings.given == {"worker.cores", "worker.idle_timeout_s", "worker.single_task"}


def test_an_empty_variable_is_not_set() -> None:
    assert load({"WQ_NUM_FOREMEN": "", "WQ_MASTER": "  "}) == load({})


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("head:9099", "head", 9099),
        ("head", "head", 9094),
        (":9099", "127.0.0.1", 9099),
        ("[fe80::1]:9099", "fe80::1", 9099),
        ("[fe80::1]", "fe80::1", 9094),
    ],
)
def test_master(text: str, host: str, port: int) -> None:
    settings = load({"WQ_MASTER": text})
    assert (settings.master_host, settings.master_port) == (host, port)


def test_paths_are_absolute() -> None:
    settings = load({"PILOTQ_HOME": "pool/", "WQ_WORKDIR": "~/s", "AWQ_WORKDIR": "/other"}, facts=FACTS)
    assert settings.home == "/somewhere/pool"
    assert settings.worker_workdir == "/home/u/s"
    assert settings.foreman_token == "/somewhere/pool/foreman.token"
    assert load({"AWQ_WORKDIR": "/other"}, facts=FACTS).home == "/other"


def test_workers_may_use_every_host_and_port() -> None:
    settings = load({"WQ_FOREMEN": "a, b", "WQ_NUM_FOREMEN": "2"})
    assert [str(one) for one in settings.endpoints()] == ["a:9080", "b:9080", "a:9081", "b:9081"]
    assert not any(one.is_master for one in settings.endpoints())


def test_the_port_of_the_master_is_no_foremans() -> None:
    settings = load({"WQ_MASTER_BASEPORT": "9093", "WQ_NUM_FOREMEN": "3"})
    assert settings.foreman_ports() == [9093, 9095, 9096]
    assert [one.port for one in settings.endpoints()] == [9093, 9095, 9096]
    assert [settings.with_values(foreman_index=index).foreman_port() for index in range(3)] == [9093, 9095, 9096]


def test_a_worker_can_be_sent_to_the_master_itself() -> None:
    environ = {"WQ_NUM_FOREMEN": "1", "WQ_FOREMEN": "head", "WQ_MASTER_BASEPORT": "9094"}
    assert load(environ).endpoints() == [Endpoint("head", 9094, True)]
    assert load({**environ, "WQ_MASTER": "head:9094"}).endpoints() == [Endpoint("head", 9094, True)]
    assert load({"WQ_NUM_FOREMEN": "0", "WQ_MASTER": "head:9099"}).endpoints() == [Endpoint("head", 9099, True)]


def test_no_port_is_left() -> None:
    settings = load({"WQ_MASTER_BASEPORT": "65535", "WQ_NUM_FOREMEN": "3"})
    assert settings.foreman_ports() == [65535]
    with pytest.raises(UserError, match="no port is left"):
        settings.with_values(foreman_index=1).foreman_port()


def test_offer() -> None:
    assert load({}).offer(FACTS) == Resources(4, 8 << 30, 1 << 40)
    settings = load({"WQ_NUM_WORKERS": "2", "PILOTQ_WORKER_MEMORY_BYTES": "2.5G"})
    assert settings.offer(FACTS) == Resources(2, 5 << 29, 1 << 40)


@pytest.mark.parametrize(
    ("environ", "toml", "overrides", "line"),
    [
        ({"WQ_MASTER": "head:x"}, "", {}, r"WQ_MASTER=head:x .* whole number from 1 to 65535"),
        ({"WQ_NUM_FOREMEN": "two"}, "", {}, r"WQ_NUM_FOREMEN=two .* whole number"),
        ({"WQ_NUM_FOREMEN": "²"}, "", {}, r"whole number"),
        ({"WQ_SINGLETASK": "maybe"}, "", {}, r"WQ_SINGLETASK=maybe .* 0 or 1"),
        ({"WQ_IDLETIMEOUT": "-1"}, "", {}, r"WQ_IDLETIMEOUT=-1: not a duration"),
        ({"WQ_FOREMEN": " , "}, "", {}, r"host names with commas"),
        ({"PILOTQ_MASTER_PORT": "70000"}, "", {}, r"PILOTQ_MASTER_PORT=70000"),
        ({"PILOTQ_MASTER_PROT": "1"}, "", {}, r"did you mean PILOTQ_MASTER_PORT\?"),
        ({}, "[master]\nprot = 1", {}, r"pilotq.toml: master.prot: .*did you mean master.port\?"),
        ({}, "[master]\nport = true", {}, r"master.port = True"),
        ({}, "[master]\nport = []", {}, r"one value, not a list"),
        ({}, "master = 3", {}, r"pilotq.toml: master"),
        ({}, "home = '/x'", {}, r"set PILOTQ_HOME"),
        ({}, "[master\n", {}, r"pilotq.toml cannot be read"),
        ({}, "", {"master.lease": "1"}, r"--set master.lease: .*did you mean master.lease_s\?"),
        ({}, "", {"worker.memory_bytes": "lots"}, r"not a size"),
        ({}, "", {"log.level": "loud"}, r"debug, info, warning or error"),
        ({}, "", {"master.bind": "a\nb"}, r"one line of text"),
    ],
)
def test_one_clear_line(environ: dict[str, str], toml: str, overrides: dict[str, str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        load(environ, toml, overrides, FACTS)
    assert re.search(line, caught.value.line())
    assert "\n" not in caught.value.line()
    assert caught.value.hint


def test_other_variables_do_not_matter() -> None:
    assert load({"PILOTQ_PYTHON": "x", "PILOTQ_EXTRA": "dev", "WQ_DEBUG": "1", "PATH": "/bin"}) == load({})


def test_etc_pilotq_toml_is_current() -> None:
    """`bin/pilotq config --defaults > etc/pilotq.toml` makes it so."""
    assert (ROOT / "etc" / "pilotq.toml").read_text() == to_toml()


def test_a_file_with_all_defaults_changes_nothing() -> None:
    text = re.sub(r"^#(\w+ = )", r"\1", to_toml(), flags=re.MULTILINE)
    named = {name for section in tomllib.loads(text).values() if isinstance(section, dict) for name in section}
    assert len(named) > 20
    settings = load({}, text, facts=FACTS)
    assert {setting.name for setting in TABLE} - settings.given <= {"home"}
    for setting in TABLE:
        assert getattr(settings, setting.attribute) == getattr(load({}, facts=FACTS), setting.attribute), setting.name


def test_every_setting_has_help_and_its_unit() -> None:
    assert len({setting.name for setting in TABLE}) == len(TABLE)
    for setting in TABLE:
        assert setting.help.endswith("."), setting.name
        if setting.unit in ("s", "bytes"):
            assert setting.name.endswith(f"_{setting.unit}"), setting.name
