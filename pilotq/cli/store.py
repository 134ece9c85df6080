"""`store check | backup | restore`: the durable queue on disk, with or without a master."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from pilotq import units
from pilotq.cli.context import make_directories, read_settings
from pilotq.errors import UserError
from pilotq.home import running
from pilotq.roles import backup
from pilotq.store.checking import Finding, Report

#: Findings that are printed at most; `--json` has all.
_LINES_MAX = 100


def main(options: argparse.Namespace) -> int:
    verbs = {"check": check, "backup": make_backup, "restore": restore}
    if options.verb == "check":
        if options.dir:
            raise UserError("store check takes no directory", "set PILOTQ_HOME or state_dir to look at another store")
    elif not options.dir:
        raise UserError(f"pilotq store {options.verb} needs a directory", f"pilotq store {options.verb} DIR")
    return verbs[options.verb](options)


def check(options: argparse.Namespace) -> int:
    state = Path(read_settings(options.overrides).state_dir)
    master = running(state / "run/master.json")
    report, files, file_bytes = backup.look(state)
    more = {
        "master": master["pid"] if master else None,
        "ended": report.ended,
        "notes": report.notes,
        "files": files,
        "file_bytes": file_bytes,
        "pages": report.pages,
        "free_pages": report.free_pages,
        "page_bytes": report.page_bytes,
    }
    free = 100 * report.free_pages / max(1, report.pages)
    kept = f"{units.format_count(files, 'kept file')} ({units.format_size(file_bytes)})"
    size = f"{units.format_size(report.pages * report.page_bytes)}, {free:.0f} % of it free"
    text = f"{state} is sound: {_content(report)}, {units.format_count(report.ended, 'ended task')}, {kept}; {size}"
    return _tell(options, {"state_dir": str(state), **more}, report, text, f"{state} is damaged")


def make_backup(options: argparse.Namespace) -> int:
    state, target = Path(read_settings(options.overrides).state_dir), Path(options.dir).absolute()
    report = backup.backup(state, target)
    text = f"backup of {_content(report)} in {target}"
    return _tell(options, {"backup": str(target)}, report, text, f"the backup in {target} is of a damaged store")


def restore(options: argparse.Namespace) -> int:
    settings = read_settings(options.overrides)
    make_directories(settings)
    state, source = Path(settings.state_dir), Path(options.dir).absolute()
    report = backup.restore(source, state)
    text = f"restored {_content(report)} to {state}; start the master"
    return _tell(options, {"state_dir": str(state)}, report, text, f"what was restored to {state} is damaged")


def _content(report: Report) -> str:
    clusters, tasks = units.format_count(report.clusters, "cluster"), units.format_count(report.tasks, "task")
    return f"{tasks} in {clusters} in the queue"


def _tell(options: argparse.Namespace, facts: dict[str, Any], report: Report, sound: str, damaged: str) -> int:
    """One line when all is well; else one a finding, and what it comes to."""
    findings = report.findings
    if options.json:
        facts |= {"queue": report.queue, "clusters": report.clusters, "tasks": report.tasks}
        print(json.dumps({"ok": not findings, **facts, "findings": msgspec.to_builtins(findings)}, indent=1))
        return 1 if findings else 0
    if not findings:
        print(sound)
        return 0
    for finding in findings[:_LINES_MAX]:
        print(_line(finding))
    if len(findings) > _LINES_MAX:
        print(f"... and {len(findings) - _LINES_MAX} more; --json has all")
    advice = "the master holds what it cannot read, and serves the rest; `condor_q -hold` says what is held"
    print(f"pilotq: {damaged}: {units.format_count(len(findings), 'finding')}; {advice}", file=sys.stderr)
    return 1


def _line(finding: Finding) -> str:
    if not finding.cluster:
        return finding.what
    tasks = f", tasks {finding.procs}" if finding.procs else ""
    return f"cluster {finding.cluster}{tasks}: {finding.what}"
