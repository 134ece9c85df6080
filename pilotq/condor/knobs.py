"""condor_config_val: the knobs of HTCondor that mean something here, with what they are in this pool.

Source: HTCondor manual, condor_config_val, configuration macros.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from pilotq.condor.jobad import CONDOR_VERSION
from pilotq.condor.options import Table, find_option, version
from pilotq.condor.request import Reply, Request

_TABLE: Table = {
    "verbose": (1, 0),
    "dump": (2, 0),
    "config": (2, 0),
    "raw": (2, 0),
    "expand": (2, 0),
    "evaluate": (2, 0),
    "name": (1, 1),
    "pool": (1, 1),
    "address": (1, 1),
    "local-name": (7, 1),
    "subsystem": (3, 1),
    "host": (2, 1),
    "owner": (1, 0),
    "tilde": (1, 0),
    "schedd": (2, 0),
    "startd": (3, 0),
    "master": (1, 0),
    "collector": (2, 0),
    "negotiator": (2, 0),
    "debug": (3, 0),
    "help": (1, 0),
    "version": (3, 0),
}
_CHANGES = frozenset({"set", "unset", "rset", "runset"})
_USAGE = "Usage: condor_config_val [-verbose] NAME... | -dump [PATTERN]... | -config\n"
_SOURCE = "<pilotq>"


def table(facts: Mapping[str, str], env: Mapping[str, str]) -> dict[str, str]:
    """All knobs.

    `facts`: host, schedd, port, home, state, bin, release, user; history and per_job_history, "" where none is kept.
    `env`: of who asks; its `_CONDOR_NAME` go before all.
    """
    host, state, address = facts["host"], facts["state"], f"{facts['host']}:{facts['port']}"
    found = {
        "ARCH": "X86_64",
        "BIN": facts["bin"],
        "COLLECTOR_HOST": address,
        "CONDOR_ADMIN": f"{facts['user']}@{host}",
        "CONDOR_HOST": host,
        "CONDOR_IDS": facts["ids"],
        "CONDOR_Q_DASH_BATCH_IS_DEFAULT": "false",
        "CONDOR_Q_ONLY_MY_JOBS": "false",
        "CONDOR_VERSION": CONDOR_VERSION.split()[1],
        "DAEMON_LIST": "MASTER, COLLECTOR, NEGOTIATOR, SCHEDD",
        "ENABLE_USERLOG_LOCKING": "false",
        "EXECUTE": f"{facts['home']}/work",
        "FILESYSTEM_DOMAIN": host,
        "FULL_HOSTNAME": host,
        "HISTORY": facts["history"],
        "HOSTNAME": host.partition(".")[0],
        "JOB_DEFAULT_LEASE_DURATION": "2400",
        "LOCAL_CONFIG_FILE": f"{facts['home']}/pilotq.toml",
        "LOCAL_DIR": state,
        "LOCK": state,
        "LOG": f"{facts['home']}/logs",
        "MASTER_NAME": facts["schedd"],
        "OPSYS": "LINUX",
        "PER_JOB_HISTORY_DIR": facts["per_job_history"],
        "PERIODIC_EXPR_INTERVAL": "60",
        "RELEASE_DIR": facts["release"],
        "SBIN": facts["bin"],
        "SCHEDD_HOST": host,
        "SCHEDD_NAME": facts["schedd"],
        "SPOOL": f"{state}/spool",
        "TILDE": facts["home"],
        "UID_DOMAIN": host,
        "USERNAME": facts["user"],
    }
    found = {name: value for name, value in found.items() if value}
    for name, value in env.items():
        if name.upper().startswith("_CONDOR_"):
            found[name[len("_CONDOR_") :].upper()] = value
    return dict(sorted(found.items()))


def answer(request: Request, facts: Mapping[str, str]) -> Reply:
    """What condor_config_val says: values on standard output, what is not defined on standard error."""
    words, names, dumps, is_verbose, is_config = list(request.argv), list[str](), False, False, False
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            names.append(word)
            continue
        name = word.removeprefix("-").removeprefix("-").partition(":")[0]
        if name.lower() in _CHANGES:
            return Reply(err="condor_config_val: settings of pilotq are in pilotq.toml, see `pilotq config`\n", exit=1)
        option = find_option(_TABLE, name)
        if option is None:
            return Reply(err=f"{word} is not a valid option\n{_USAGE}", exit=1)
        if option == "help":
            return Reply(out=_USAGE)
        if option == "version":
            return version()
        if _TABLE[option][1] and not words:
            return Reply(err=f"{word} requires another argument\n{_USAGE}", exit=1)
        del words[: _TABLE[option][1]]
        dumps |= option == "dump"
        is_verbose |= option == "verbose"
        is_config |= option == "config"
        names += ["TILDE"] if option == "tilde" else []
    knobs = table(facts, request.env)
    if is_config:
        return Reply(out=f"Configuration source:\n\t{knobs['LOCAL_CONFIG_FILE']}\n")
    if dumps:
        patterns = [f"*{name.upper().strip('*')}*" for name in names] or ["*"]
        wanted = [name for name in knobs if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        return Reply(out="".join([f"{name} = {knobs[name]}\n" for name in wanted]))
    if not names:
        return Reply(err=_USAGE, exit=1)
    reply = Reply()
    for name in names:
        value = knobs.get(name.upper())
        if value is None:
            reply.err += f"Not defined: {name}\n"
            reply.exit = 1
        elif is_verbose:
            reply.out += f"{name.upper()} = {value}\n # at: {_SOURCE}\n # raw: {name.upper()} = {value}\n"
        else:
            reply.out += f"{value}\n"
    return reply
