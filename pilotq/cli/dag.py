"""`dag`: the runner of a DAG; and condor_submit_dag, which submits it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import subprocess
import sys

from pilotq.cli.context import ROOT, read_settings
from pilotq.client import Client
from pilotq.condor.jobad import CONDOR_PLATFORM, CONDOR_VERSION
from pilotq.dag.model import DagError
from pilotq.dag.options import USAGE, Options, read_options, submit_description, submitted_text
from pilotq.dag.parser import parse
from pilotq.dag.records import read_rescue, rescue_name
from pilotq.errors import UserError
from pilotq.roles.dag_files import holder, last_rescue

#: Suffixes of what a run writes.
_MADE = ("condor.sub", "lib.out", "lib.err", "dagman.log")


def main(options: argparse.Namespace) -> int:
    """`pilotq dag`: run in the foreground until the DAG is over."""
    from pilotq.roles.dag import Runner

    try:
        words = read_options(options.words)
        if not words.files:
            raise DagError("no DAG file was given")
        texts: list[str] = []

        def read(path: str) -> str:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                texts.append(file.read())
            return texts[-1]

        dag = parse(words.files, read, "usedagdir" in words.flags)
        digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()
        rescue = _rescue(words)
        if rescue:
            read_rescue(dag, read(rescue_name(words.primary, rescue)))
    except DagError as error:
        raise UserError(str(error), exit_code=1) from None
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})", exit_code=1) from None
    for warning in dag.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    client = Client(read_settings(options.overrides).home)

    async def run() -> int:
        return await Runner(words, dag, digest, client).run()

    return asyncio.run(run())


def _rescue(words: Options) -> int:
    """Number of the rescue file to go on from; 0: none."""
    wanted = words.number("dorescuefrom")
    if wanted and not os.path.exists(rescue_name(words.primary, wanted)):
        raise DagError(f"there is no rescue file {rescue_name(words.primary, wanted)}")
    if wanted or not words.number("autorescue", 1) or "force" in words.flags:
        return wanted
    return last_rescue(words.primary)


# ---- condor_submit_dag -------------------------------------------------------------------------------------------


def submit(options: argparse.Namespace) -> int:
    """What condor_submit_dag does."""
    try:
        words = read_options(options.words)
        if "help" in words.flags or "version" in words.flags:
            print(USAGE if "help" in words.flags else f"{CONDOR_VERSION}\n{CONDOR_PLATFORM}", end="")
            return 0
        if not words.files:
            raise DagError("no DAG file was given")
        for file in words.files:
            if not os.path.exists(file):
                raise DagError(f"no such DAG file {file}")
        _make_room(words)
    except DagError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    environment = f"_CONDOR_DAGMAN_LOG={words.primary}.dagman.out;_CONDOR_MAX_DAGMAN_LOG=0"
    if "insert_env" in words.values:
        environment += f";{words.values['insert_env']}"
    with open(f"{words.primary}.condor.sub", "w", encoding="utf-8", errors="surrogateescape") as out:
        out.write(submit_description(words, f"{ROOT}/bin/pilotq", environment))
    if "no_submit" in words.flags:
        line = "-" * 71
        print(f"\n{line}\nFile for submitting this DAG to HTCondor            : {words.primary}.condor.sub\n{line}")
        return 0
    try:
        said = start(words)
    except DagError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    print(submitted_text(words, said), end="")
    return 0


def _make_room(words: Options) -> None:
    """Raises: DagError when there are files of an earlier run that nobody said may be lost."""
    file = words.primary
    if pid := holder(f"{file}.lock"):
        raise DagError(f"{file} is being run by process {pid}; condor_rm of its job ends it")
    if "force" in words.flags:
        for number in range(1, last_rescue(file) + 1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(rescue_name(file, number), f"{rescue_name(file, number)}.old")
        for suffix in (*_MADE, "journal"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{file}.{suffix}")
        return
    # A run that was cut off, or that left a rescue file, goes on.
    if os.path.exists(f"{file}.journal") or _rescue(words) or "update_submit" in words.flags:
        return
    there = [f"{file}.{suffix}" for suffix in _MADE if os.path.exists(f"{file}.{suffix}")]
    if there:
        lines = "".join(f'ERROR: "{path}" already exists.\n' for path in there)
        raise DagError(
            f"{lines.removeprefix('ERROR: ')}\nSome file(s) needed by condor_dagman already exist.  "
            "Either rename them,\n"
            'use the "-f" option to force them to be overwritten, or use\n'
            'the "-update_submit" option to update the submit file and continue.'
        )


def start(words: Options) -> str:
    """Have the runner run, as a job of universe scheduler; what condor_submit says of it.

    Raises: DagError when that refuses.
    """
    command = [f"{ROOT}/fakecondor/condor_submit", f"{words.primary}.condor.sub"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DagError(done.stderr.strip().removeprefix("ERROR: ") or f"condor_submit ended with {done.returncode}")
    return done.stdout
