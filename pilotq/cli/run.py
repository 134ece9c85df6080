"""`run`: a pool for a few submit files, from nothing to nothing."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from pilotq import units
from pilotq.cli.context import ROOT, SHIMS, make_directories, read_settings
from pilotq.cli.pool import Interrupted, Pool, choices
from pilotq.cli.progress import Counts, ended, is_over, new_progress
from pilotq.cli.temporary import find_local_directory, keep_logs, of_its_own
from pilotq.client import Client
from pilotq.errors import PilotqError, UnavailableError, UserError

REPAIRS_MAX = 5
#: Progress is looked at so often.
REFRESH_S = 0.3
#: How long a cancelled pool may take to write the last user logs.
CANCEL_S = 20.0
SHOWN_MAX = 5
#: Tasks that wait so long beside free slots may fit nowhere.
STUCK_S = 10.0
_SUBMITTED = re.compile(r"^(\d+) job\(s\) submitted to cluster (\d+)", re.MULTILINE)


def main(options: argparse.Namespace) -> int:
    for path in options.files:
        _check_readable(path)
    settings = read_settings(options.overrides)
    parent = find_local_directory()
    home = tempfile.mkdtemp(prefix="pilotq-", dir=parent)
    overrides = {
        **of_its_own(home, options.foremen if options.foremen is not None else settings.foreman_count),
        **({} if "worker.idle_timeout_s" in settings.given else {"worker.idle_timeout_s": "0"}),
        **options.overrides,
        **choices(options),
    }
    settings = read_settings(overrides)
    make_directories(settings)
    pool = Pool(settings, overrides, os.environ, dies_with_us=not options.keep)
    return Run(pool, options.files, options.keep).run()


def _check_readable(path: str) -> None:
    if path == "-":
        return
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", "give the submit file to run") from None


class Run:
    """One call of `pilotq run`."""

    def __init__(self, pool: Pool, files: Sequence[str], keep: bool) -> None:
        self.pool = pool
        self.home = pool.settings.home
        self.client: Client = pool.client
        self.files = files
        self.keep = keep
        self.clusters: list[int] = []
        self._is_leaving = False
        self._repairs = 0
        #: What was seen last of idle and ended tasks, and when it changed; infinite: the hint was given.
        self._seen: list[tuple[int, int]] = []
        self._changed_at = 0.0

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        remains = False
        began = time.monotonic()
        try:
            self._say(f"starting a pool in {self.home}")
            self.pool.start_missing()
            began = time.monotonic()
            for path in self.files:
                self._submit(path)
            clusters = self._wait()
            code = self._sum_up(clusters, time.monotonic() - began)
            remains = self.keep
        except Interrupted as interrupt:
            self._is_leaving = True
            self._say("stopping")
            self._cancel()
            self._sum_up_interrupted(began)
            code = interrupt.exit_code
        except UnavailableError as error:
            raise UnavailableError(str(error), f"the logs are in {keep_logs(self.home)}", exit_code=1) from None
        finally:
            self._is_leaving = True
            if not remains:
                self._take_down()
        if remains:
            self.pool.remember()
            self._say(f"the pool goes on; use it with: export PILOTQ_HOME={shlex.quote(self.home)}")
            program = f"{ROOT}/bin/pilotq"
            program = shlex.quote(program) if os.path.exists(program) else "pilotq"
            self._say(f"stop it with: {program} down; after that the directory {self.home} can be removed")
        return code

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._is_leaving:
            raise Interrupted(number)
        # The second time: no politeness.
        self.pool.stop_all(polite=False)

    def _submit(self, path: str) -> None:
        """Raises: UserError after condor_submit has said on stderr why not."""
        shim = f"{SHIMS}/condor_submit"
        environ = {**self.pool.environ, "PATH": f"{SHIMS}:{os.environ.get('PATH', os.defpath)}"}
        done = subprocess.run(
            [shim] if path == "-" else [shim, path],
            env=environ,
            stdin=None if path == "-" else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=False,
            encoding="utf-8",
            errors="surrogateescape",
        )
        found = _SUBMITTED.findall(done.stdout)
        if done.returncode or not found:
            self._cancel()
            hint = "nothing of it runs"
            if self.clusters:
                names = ", ".join(map(str, self.clusters))
                hint += f", and what was submitted before is cancelled (cluster {names})"
            raise UserError(f"{path} was refused by condor_submit (exit {done.returncode})", hint)
        for count, cluster in found:
            self.clusters.append(int(cluster))
            self._say(f"submitted {path} as cluster {cluster}: {units.format_count(int(count), 'task')}")

    def _wait(self) -> list[Counts]:
        """The clusters when nothing is left of them but held tasks."""
        progress = new_progress()
        try:
            while True:
                clusters = self._ask(REFRESH_S)
                if clusters is None:
                    time.sleep(REFRESH_S)
                else:
                    progress.show(clusters)
                    if all(is_over(cluster) for cluster in clusters):
                        self._settle(10.0)
                        return self._ask() or clusters
                    self._tell_if_stuck(clusters)
        finally:
            progress.close()

    def _tell_if_stuck(self, clusters: Sequence[Counts]) -> None:
        """Say once how to find out why tasks wait beside free slots."""
        seen = [(int(cluster["idle"]), ended(cluster)) for cluster in clusters]
        now = time.monotonic()
        if seen != self._seen:
            self._seen, self._changed_at = seen, max(now, self._changed_at)
        waiting = [cluster["cluster"] for cluster in clusters if cluster["idle"]]
        if not waiting or now - self._changed_at < STUCK_S:
            return
        self._changed_at = now
        try:
            free = self.client.get("/v1/status")["slots"]["free"]
        except UnavailableError:
            return
        if free:
            self._changed_at = float("inf")
            command = f"PILOTQ_HOME={shlex.quote(self.home)} {shlex.quote(SHIMS)}/condor_q -better-analyze {waiting[0]}"
            self._say(f"tasks wait though slots are free; perhaps no worker is large enough. Ask: {command}")

    def _ask(self, wait_s: float = 0) -> list[Counts] | None:
        """The clusters, once they are over or after a while; None while the master does not answer but may again."""
        for words in [] if self._is_leaving else self.pool.repair():
            self._say(f"{words}; started again")
            self._repairs += 1
            if self._repairs > REPAIRS_MAX:
                raise UnavailableError("the pool does not stay alive", f"look into {self.home}/logs", exit_code=1)
        try:
            ids = ",".join(map(str, self.clusters))
            return list(self.client.get(f"/v1/clusters?ids={ids}&wait_s={wait_s}"))
        except UnavailableError:
            return None

    def _settle(self, timeout_s: float) -> None:
        """Wait until the last user logs are written."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if not self.client.get("/v1/status").get("scribe", {}).get("backlog"):
                return
            time.sleep(0.02)

    def _cancel(self) -> None:
        """End what is there, so that logs do not end in the middle of a task."""
        if not self.clusters:
            return
        try:
            selection = [{"cluster": cluster} for cluster in self.clusters]
            self.client.post("/v1/act", {"verb": "cancel", "selection": selection, "reason": "pilotq run was stopped"})
            end = time.monotonic() + CANCEL_S
            while time.monotonic() < end and not all(map(is_over, self._ask() or [])):
                time.sleep(0.05)
            self._settle(max(0.0, end - time.monotonic()))
        except PilotqError as error:
            self._say(error.line())

    def _sum_up(self, clusters: Sequence[Counts], seconds: float) -> int:
        total, done, failed, held, cancelled = (
            sum(int(cluster.get(key) or 0) for cluster in clusters)
            for key in ("count", "done", "failed", "held", "cancelled")
        )
        good = done - failed
        counts = {"failed": failed, "held": held, "cancelled": cancelled}
        words = [f"{good:,} done", *(f"{number:,} {word}" for word, number in counts.items() if number)]
        took = units.format_duration(seconds)
        print(f"{units.format_count(total, 'task')}: {', '.join(words)} in {took} ({total / seconds:.1f} tasks/s)")
        for state in ("failed", "held"):
            if counts[state]:
                self._show(state, counts[state])
        folders = sorted({str(cluster["iwd"]) for cluster in clusters if cluster.get("iwd")} or {os.getcwd()})
        print("outputs are where the description says, seen from " + ", ".join(folders))
        return 0 if good == total else 1

    def _sum_up_interrupted(self, began: float) -> None:
        """What was done until then; without a master that answers, nothing."""
        with contextlib.suppress(PilotqError, OSError):
            clusters = self._ask() if self.clusters else None
            if clusters:
                self._sum_up(clusters, time.monotonic() - began)

    def _show(self, state: str, count: int) -> None:
        rows: list[dict[str, Any]] = []
        for cluster in self.clusters:
            rows += self.client.get(f"/v1/tasks?cluster={cluster}&state={state}&limit={SHOWN_MAX}")
        for row in rows[:SHOWN_MAX]:
            words = [str(row.get("outcome") or ""), str(row.get("code") or ""), str(row.get("reason") or "")]
            print(units.printable(f"  {row['task']} {state}: {' '.join(word for word in words if word)}"))
        if count > SHOWN_MAX:
            print(f"  and {count - SHOWN_MAX:,} more")

    def _take_down(self) -> None:
        self.pool.stop_all()
        shutil.rmtree(self.home, ignore_errors=True)

    def _say(self, text: str) -> None:
        try:
            print(f"pilotq: {text}", file=sys.stderr, flush=True)
        except OSError:
            pass
