"""A PILOTQ_HOME for tests with real processes, and the commands that use it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pilotq.cli.processes import read_records, stop

ROOT = Path(__file__).resolve().parents[2]
SHIMS = ROOT / "fakecondor"


def clean_environ() -> dict[str, str]:
    """Ours without what would lead to another pool."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WQ_", "PILOTQ_", "AWQ_")) or name == "PILOTQ_PYTHON"
    }


class Home:
    """A PILOTQ_HOME of a test, and the commands that use it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environ = {
            **clean_environ(),
            "PILOTQ_HOME": str(path),
            "WQ_WORKDIR": str(path / "work"),
            "WQ_DRAIN": str(path / "drain-worker"),
            "PYTHONPATH": str(ROOT),
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "pilotq", *words]

    def pilotq(
        self, *words: str, timeout_s: float = 60, cwd: Path | None = None, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        return self.call(self.command(*words), timeout_s=timeout_s, cwd=cwd, **environ)

    def condor(
        self, tool: str, *words: str, stdin: str | None = None, cwd: Path | None = None, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        return self.call([str(SHIMS / tool), *words], stdin=stdin, cwd=cwd, **environ)

    def call(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        timeout_s: float = 60,
        cwd: Path | None = None,
        **environ: str,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            env=self._with(environ),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            cwd=cwd or self.path.parent,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def _with(self, environ: Mapping[str, str]) -> dict[str, str]:
        return {**self.environ, **environ}

    def kill(self) -> None:
        """End everything that was started from here, by its records."""
        loops = [record for folder in (self.path / "work").glob("*/run") for record in read_records(str(folder.parent))]
        stop(loops, 0, polite=False)
        stop(read_records(str(self.path)), 0, polite=False)
