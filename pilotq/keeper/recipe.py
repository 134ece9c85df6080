"""What the attempts of one cluster have in common: decoded and put together once, not for every proc."""

from __future__ import annotations

import os
import pwd
from typing import Any

import msgspec

from pilotq.condor.jobfile import patched
from pilotq.keeper.attempt import encoded
from pilotq.keeper.talk import Launch
from pilotq.model import CLUSTER_MARK, PROC_MARK, Description, fill
from pilotq.sandbox.files import STDERR_FILE, STDOUT_FILE
from pilotq.sandbox.spares import Filling

#: What a task sees of the worker's own environment, with all LC_*.
PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ")
#: What acts in a program before its first line. The wrapper is the site's: with one, no description sets these.
BEFORE_FIRST_LINE = frozenset({
    "LD_PRELOAD", "LD_AUDIT", "GLIBC_TUNABLES", "BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "PS4", "IFS", "PERL5OPT",
    "PERL5DB", "PYTHONSTARTUP", "PYTHONINSPECT", "RUBYOPT", "NODE_OPTIONS",
})  # fmt: skip
_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
#: Clusters whose recipes are remembered.
_RECIPES_MAX = 16
_FIELDS = frozenset(Description.__struct_fields__)
#: Fields whose packed form is their value.
_PLAIN = frozenset({"argv", "env", "stdin", "outputs", "wrapper", "job_ad"})

_decoder = msgspec.msgpack.Decoder(Description)


def base_environment() -> dict[str, str]:
    """What every task of this process gets of its environment."""
    try:
        account = pwd.getpwuid(os.geteuid())
        known = {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
    except KeyError:
        known = {}
    known["PATH"] = _DEFAULT_PATH
    for name, value in os.environ.items():
        if name.startswith("LC_") or (name in PASSED_ON and name != "HOME") or (name == "HOME" and name not in known):
            known[name] = value
    return known


class Recipe:
    """One packed description.

    Raises: msgspec.MsgspecError when it is not one.
    """

    def __init__(self, body: bytes) -> None:
        self._common = _decoder.decode(body)
        self._fields: dict[str, Any] = msgspec.msgpack.decode(body)
        #: Fields with marks in them, which differ between procs.
        self._marked = [name for name, value in self._fields.items() if name in _FIELDS and _has_marks(value)]
        #: By field: the cluster, and what stands between the numbers of its procs.
        self._cut: dict[str, tuple[int, list[str]]] = {}
        self._environment: tuple[dict[str, str], dict[str, str], dict[bytes, bytes]] | None = None
        self._filling: Filling | None = None

    def description(self, launch: Launch) -> Description:
        """Of one proc: delta applied, marks filled in.

        Raises: msgspec.MsgspecError, AttributeError, ValueError when the delta is none.
        """
        cluster, proc = launch.token.cluster, launch.token.proc
        if not launch.delta and _PLAIN.issuperset(self._marked):
            if not self._marked:
                return self._common
            filled = {name: self._filled(name, cluster, proc) for name in self._marked}
            return msgspec.structs.replace(self._common, **filled)
        fields = dict(self._fields)
        if launch.delta:
            changes = msgspec.msgpack.decode(launch.delta)
            fields.update((name, value) for name, value in changes.items() if name in _FIELDS)
            if "ad" in changes:
                fields["job_ad"] = patched(fields.get("job_ad", ""), changes["ad"])
        return msgspec.convert(fill(fields, cluster, proc), Description)

    def _filled(self, name: str, cluster: int, proc: int) -> Any:
        """A field with marks for one proc. A text, which may be long, is cut at them once for all procs."""
        value = self._fields[name]
        if not isinstance(value, str):
            return fill(value, cluster, proc)
        known = self._cut.get(name)
        if known is None or known[0] != cluster:
            known = self._cut[name] = cluster, value.replace(CLUSTER_MARK, str(cluster)).split(PROC_MARK)
        return str(proc).join(known[1])

    def environment(self, d: Description, base: dict[str, str], extra: dict[str, str]) -> dict[bytes, bytes]:
        """What is the same for attempts with this environment.

        Raises: ValueError for what cannot be a variable.
        """
        known = self._environment
        if known is None or known[0] is not d.env or known[1] != extra:
            own = _without_hooks(d.env) if d.wrapper else d.env
            made = {**base, **own, "_CONDOR_SLOT": "slot1", **extra, "BATCH_SYSTEM": "HTCondor"}
            known = self._environment = (d.env, extra, encoded(made))
        return known[2]

    def filling(self, d: Description, machine_ad: str) -> Filling:
        """Of the sandbox, besides the job ad."""
        known, common = self._filling, self._common
        if d.files is not common.files or d.argv is not common.argv or d.wrapper is not common.wrapper:
            return _filling(d, machine_ad)
        if known is None or known.machine_ad != machine_ad:
            known = self._filling = _filling(d, machine_ad)
        return known


def _without_hooks(env: dict[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in env.items()
        if name not in BEFORE_FIRST_LINE and not name.startswith("BASH_FUNC_")
    }


def _filling(d: Description, machine_ad: str) -> Filling:
    commands = [d.argv, d.wrapper, d.pre.argv if d.pre else [], d.post.argv if d.post else []]
    executables = [argv[0] for argv in commands if argv and not argv[0].startswith("/")]
    streams = [STDOUT_FILE] * d.keep_stdout + [STDERR_FILE] * (d.keep_stderr and not d.merge)
    return Filling(d.files, executables, machine_ad, streams)


class Recipes:
    """Those of the clusters seen last."""

    def __init__(self) -> None:
        self._recipes: dict[bytes, Recipe] = {}

    def get(self, body: bytes) -> Recipe:
        """Raises: msgspec.MsgspecError when it is not a description."""
        recipe = self._recipes.get(body)
        if recipe is None:
            recipe = Recipe(body)
            if len(self._recipes) >= _RECIPES_MAX:
                del self._recipes[next(iter(self._recipes))]
            self._recipes[body] = recipe
        return recipe


def _has_marks(value: Any) -> bool:
    packed = msgspec.msgpack.encode(value)
    return CLUSTER_MARK.encode() in packed or PROC_MARK.encode() in packed
