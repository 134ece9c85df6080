"""All settings: one table with name, default, unit, variable and help.

The fields of `Settings` are the table. `master_port` is called `master.port` in messages and `--set`, is `port` under
`[master]` in pilotq.toml, and `PILOTQ_MASTER_PORT` in the environment, besides the WQ_* variable that it may have from
alien-workqueue. Later wins: default, pilotq.toml, WQ_*, PILOTQ_*, `--set`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from pilotq import units
from pilotq.errors import UserError
from pilotq.model import Resources

Value = str | int | float | bool | tuple[str, ...]
LEVELS = ("debug", "info", "warning", "error")
SECTIONS = ("master", "foreman", "worker", "task", "queue", "catalog", "log")


class Facts(NamedTuple):
    """What the machine says about itself; found out by the caller."""

    #: Home directory of the account.
    home_dir: str = "/"
    host: str = "localhost"
    cpus: int = 1
    memory_bytes: int = 0
    #: Free where the worker's scratch is.
    disk_bytes: int = 0
    #: What relative paths belong to.
    cwd: str = "/"


_NOWHERE = Facts()


class Setting(NamedTuple):
    """One row of the table."""

    #: Dotted: section and name.
    name: str
    #: Name of the field in `Settings`.
    attribute: str
    type: str
    default: Value
    #: "", "s", "bytes", "path", "port", "hosts", "level" or words with commas between: how its text is read.
    unit: str
    #: Variables from alien-workqueue; the last one that is set wins over the ones before it.
    env: tuple[str, ...]
    help: str

    @property
    def variable(self) -> str:
        return f"PILOTQ_{self.attribute.upper()}"


class Endpoint(NamedTuple):
    """Where a worker can connect to."""

    host: str
    port: int
    #: True: the master itself listens there, not a foreman; its key is another one.
    is_master: bool

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def _set(default: Any, help: str, unit: str = "", env: str = "") -> Any:
    return field(default=default, metadata={"unit": unit, "env": tuple(env.split()), "help": help})


@dataclass(frozen=True)
class Settings:
    """Every setting with its value; paths are absolute once `load` made it."""

    home: str = _set("~/.pilotq", "Keys, tokens, pilotq.toml and the address of the master.", "path", "AWQ_WORKDIR")
    state_dir: str = _set(
        "",
        "Queue, kept files, socket and logs. Empty: the home when that is a local file system, "
        "else /var/tmp/pilotq-UID.",
        "path",
    )
    instance: str = _set("", "Name of this pool in logs and pages. Empty: the host name.")

    master_bind: str = _set("*", "Address the master listens on; * is all.")
    master_host: str = _set("127.0.0.1", "Host of the master, for foremen and workers.", env="WQ_MASTER")
    master_port: int = _set(9094, "Port of the master.", "port", "WQ_MASTER")
    master_job_wrapper: str = _set("", "Program put before every payload. Empty: none.", "path")
    master_lease_s: float = _set(2400.0, "How long a worker may run a task without contact.", "s")
    master_beat_s: float = _set(5.0, "Time between two heartbeats of a worker or foreman.", "s")
    master_contact_lost_s: float = _set(30.0, "Silence after which a worker gets no new tasks.", "s")
    master_max_losses: int = _set(5, "A task lost so often with its worker, on two nodes at least, is held.")
    master_policy_interval_s: float = _set(60.0, "Time between two looks at periodic_hold and its kin.", "s")
    master_history_file: str = _set(
        "",
        "File that the ads of jobs which leave the queue are appended to, as HTCondor's HISTORY. Empty: none.",
        "path",
    )
    master_per_job_history_dir: str = _set(
        "", "Directory for a file history.CLUSTER.PROC of each job that leaves the queue. Empty: none.", "path"
    )
    master_history_max_bytes: int = _set(
        20 << 20, "The history file is put aside when it is larger; 0: never.", "bytes"
    )
    master_history_rotations: int = _set(2, "History files put aside that are kept.")

    master_local_tasks: int = _set(20, "Tasks of the universes local and scheduler that run on the head at once.")

    foreman_hosts: tuple[str, ...] = _set(("127.0.0.1",), "Hosts where foremen run.", "hosts", "WQ_FOREMEN")
    foreman_count: int = _set(2, "Foremen on each host; 0: workers connect to the master.", env="WQ_NUM_FOREMEN")
    foreman_base_port: int = _set(
        9080, "Port of the first foreman; the master's own port is skipped.", "port", "WQ_MASTER_BASEPORT"
    )
    foreman_index: int = _set(0, "Which foreman of this host it is, from 0.")
    foreman_bind: str = _set("*", "Address a foreman listens on; * is all.")
    foreman_token: str = _set("", "The foreman's key file. Empty: foreman.token in the home.", "path")

    worker_workdir: str = _set("~/.alien_wq_tmp", "Scratch of foremen and workers.", "path", "WQ_WORKDIR")
    worker_drain_file: str = _set("~/.alien_wq_drain", "Drain while this file exists.", "path", "WQ_DRAIN")
    worker_single_task: bool = _set(False, "Close a slot after its first task.", env="WQ_SINGLETASK")
    worker_idle_timeout_s: float = _set(
        100.0, "Close a slot that had no task for so long; 0: never.", "s", "WQ_IDLETIMEOUT"
    )
    worker_no_respawn: bool = _set(False, "Do not start a worker again after it left.", env="WQ_NORESPAWN")
    worker_cores: int = _set(0, "Cores this worker offers; 0: the CPUs of the node.", env="WQ_NUM_WORKERS")
    worker_memory_bytes: int = _set(0, "Memory this worker offers; 0: that of the node.", "bytes")
    worker_disk_bytes: int = _set(0, "Disk this worker offers; 0: what is free in its scratch.", "bytes")
    worker_ahead: int = _set(0, "Tasks kept waiting on the worker to start at once; 0: by their length.")
    worker_keepers: int = _set(2, "Processes that start and watch the tasks.")
    worker_cgroups: str = _set("auto", "Control groups for tasks: auto, where the system lets us, or off.", "auto, off")
    worker_task_processes: int = _set(
        10_000, "A task with so many processes and threads is ended and held; 0: not looked at."
    )
    worker_token: str = _set("", "The worker's key file. Empty: worker.token in the home.", "path")

    submit_token: str = _set("", "The gateway's key file. Empty: submit.token in the home.", "path")

    task_cpus: int = _set(1, "Cores of a task that asks for none.")
    task_memory_bytes: int = _set(0, "Memory of a task that asks for none; 0: not looked at.", "bytes")
    task_disk_bytes: int = _set(0, "Disk of a task that asks for none; 0: not looked at.", "bytes")
    task_wall_time_s: float = _set(0.0, "Wall time of a task that asks for none; 0: no limit.", "s")

    queue_max_idle: int = _set(0, "Refuse to accept tasks above so many idle ones; 0: never.")

    catalog_host: str = _set("", "Work Queue catalog to report to. Empty: none.")
    catalog_port: int = _set(9097, "Port of the catalog.", "port")
    catalog_project: str = _set("alien_jobs", "Project name in the catalog.")

    log_level: str = _set("info", "Least level that is logged: debug, info, warning or error.", "level")

    #: Names of the settings that somebody gave; the others have their default.
    given: frozenset[str] = frozenset()

    def with_values(self, **values: Any) -> Settings:
        """A copy with other values, by attribute."""
        return replace(self, given=self.given | {_name_of(attribute) for attribute in values}, **values)

    def foreman_ports(self) -> list[int]:
        """The ports of the foremen of a host, in the order of their index; never the master's number."""
        ports: list[int] = []
        port = self.foreman_base_port
        while len(ports) < self.foreman_count and port <= 65535:
            if port != self.master_port:
                ports.append(port)
            port += 1
        return ports

    def foreman_port(self) -> int:
        """The port of the foreman `foreman.index`.

        Raises: UserError when there is no port number left for it.
        """
        ports = self.with_values(foreman_count=self.foreman_index + 1).foreman_ports()
        if len(ports) <= self.foreman_index:
            raise UserError(
                f"no port is left for foreman {self.foreman_index} from {self.foreman_base_port} upwards",
                "lower foreman.base_port (WQ_MASTER_BASEPORT)",
            )
        return ports[self.foreman_index]

    def endpoints(self) -> list[Endpoint]:
        """Where a worker may connect to: every host of foremen with every port.

        A base port that is the master's own port means the master itself, on the host named for the foremen
        (`WQ_NUM_FOREMEN=1 WQ_FOREMEN=head WQ_MASTER_BASEPORT=9094`, as alien-workqueue had it); `foreman.count`
        0 means the master where `WQ_MASTER` says.
        """
        if self.foreman_count == 0:
            return [Endpoint(self.master_host, self.master_port, True)]
        ports = self.foreman_ports()
        if self.foreman_base_port == self.master_port:
            ports = [self.master_port, *ports[:-1]]
        return [Endpoint(host, port, port == self.master_port) for port in ports for host in self.foreman_hosts]

    def offer(self, facts: Facts) -> Resources:
        """What a worker with these settings offers on a machine with these facts."""
        return Resources(
            cpus=self.worker_cores or max(1, facts.cpus),
            memory_bytes=self.worker_memory_bytes or facts.memory_bytes,
            disk_bytes=self.worker_disk_bytes or facts.disk_bytes,
        )


def _name_of(attribute: str) -> str:
    section, _, rest = attribute.partition("_")
    return f"{section}.{rest}" if section in SECTIONS else attribute


def _table() -> Iterator[Setting]:
    for entry in fields(Settings):
        if entry.metadata:
            meta = entry.metadata
            default: Any = entry.default
            yield Setting(
                _name_of(entry.name), entry.name, str(entry.type), default, meta["unit"], meta["env"], meta["help"]
            )


TABLE: tuple[Setting, ...] = tuple(_table())
BY_NAME: dict[str, Setting] = {setting.name: setting for setting in TABLE}
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})


def load(
    environ: Mapping[str, str],
    toml_text: str = "",
    overrides: Mapping[str, str] | None = None,
    facts: Facts = _NOWHERE,
) -> Settings:
    """The settings from all sources.

    Raises: UserError with one line that names the source and what to do.
    """
    values: dict[str, Value] = {}
    _from_toml(toml_text, values)
    _from_environ(environ, values)
    for name, text in (overrides or {}).items():
        setting = _get(name, f"--set {name}")
        values[setting.attribute] = _convert(setting, text, f"--set {name}={text}")
    given = frozenset(_name_of(attribute) for attribute in values)
    for setting in TABLE:
        if setting.unit == "path":
            values[setting.attribute] = _expand(str(values.get(setting.attribute, setting.default)), facts)
    for role in ("worker", "foreman", "submit"):
        values[f"{role}_token"] = values[f"{role}_token"] or f"{values['home']}/{role}.token"
    values["instance"] = values.get("instance") or facts.host
    return replace(Settings(), given=given, **values)  # type: ignore[arg-type]


def find_home(environ: Mapping[str, str], overrides: Mapping[str, str] | None = None, facts: Facts = _NOWHERE) -> str:
    """The home alone, which must be known before the pilotq.toml in it can be read."""
    only = {name: environ[name] for name in ("AWQ_WORKDIR", "PILOTQ_HOME") if name in environ}
    return load(only, overrides={n: v for n, v in (overrides or {}).items() if n == "home"}, facts=facts).home


def _from_toml(text: str, values: dict[str, Value]) -> None:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"pilotq.toml cannot be read: {error}", "mend it, or compare with etc/pilotq.toml") from None
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            flat[key] = value
    for name, value in flat.items():
        setting = _get(name, f"pilotq.toml: {name}")
        if name == "home":
            raise UserError("pilotq.toml: home cannot be set in the file that lies in it", "set PILOTQ_HOME")
        values[setting.attribute] = _convert(setting, value, f"pilotq.toml: {name} = {value!r}")


def _from_environ(environ: Mapping[str, str], values: dict[str, Value]) -> None:
    for setting in TABLE:
        for variable in (*setting.env, setting.variable):
            text = environ.get(variable, "").strip()
            if not text:
                continue
            if variable == "WQ_MASTER":
                text = _master(text)[setting.attribute == "master_port"]
            if text:
                values[setting.attribute] = _convert(setting, text, f"{variable}={environ[variable]}")
    known = {setting.variable for setting in TABLE}
    for variable in environ:
        if variable not in known and variable.startswith(tuple(f"PILOTQ_{section.upper()}_" for section in SECTIONS)):
            raise UserError(f"there is no setting {variable}", _nearest(variable, known))


def _master(text: str) -> tuple[str, str]:
    """Host and port of "host:port", "host", ":port" or "[::1]:port"; "" is not given."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":")
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "")
    return host, port


def _get(name: str, where: str) -> Setting:
    setting = BY_NAME.get(name)
    if setting is None:
        raise UserError(f"{where}: there is no such setting", _nearest(name, set(BY_NAME)))
    return setting


def _nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), 1, 0.6)
    return f"did you mean {close[0]}?" if close else "`pilotq config --defaults` lists them all"


def _convert(setting: Setting, value: object, where: str) -> Value:
    try:
        return _read(setting, value)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{where} cannot be used", f"{setting.name} must be {error}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}", error.hint) from None


def _read(setting: Setting, value: object) -> Value:
    """Raises: ValueError that says what it must be."""
    text = value.strip() if isinstance(value, str) else str(value)
    if setting.type == "bool":
        return _bool(value, text)
    if isinstance(value, bool):
        raise ValueError("no truth value")
    if setting.unit == "hosts":
        return _hosts(value)
    if not isinstance(value, str | int | float):
        raise ValueError("one value, not a list or table")
    if setting.unit == "bytes":
        return units.parse_size(text)
    if setting.unit == "s":
        return units.parse_duration(text)
    if setting.type == "int":
        low, high = (1, 65535) if setting.unit == "port" else (0, 1 << 40)
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}" if high == 65535 else "a whole number, 0 or more")
        return int(text)
    words = LEVELS if setting.unit == "level" else tuple(setting.unit.split(", ")) if "," in setting.unit else ()
    if words and text.lower() not in words:
        raise ValueError(", ".join(words[:-1]) + f" or {words[-1]}")
    if "\n" in text or "\0" in text:
        raise ValueError("one line of text")
    return text.lower() if words else text


def _bool(value: object, text: str) -> bool:
    if isinstance(value, bool):
        return value
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("0 or 1")


def _hosts(value: object) -> tuple[str, ...]:
    entries = value if isinstance(value, list) else str(value).split(",")
    hosts = tuple(dict.fromkeys(entry.strip() for entry in entries if isinstance(entry, str) and entry.strip()))
    if not hosts or any(" " in host for host in hosts):
        raise ValueError("host names with commas between them")
    return hosts


def _expand(path: str, facts: Facts) -> str:
    if path == "~" or path.startswith("~/"):
        path = facts.home_dir + path[1:]
    if path and not path.startswith("/"):
        path = f"{facts.cwd}/{path}"
    return path.rstrip("/") or ("/" if path else "")
