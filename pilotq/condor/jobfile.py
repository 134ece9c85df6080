"""The ad of a job as the file that `_CONDOR_JOB_AD` names: old ClassAd text, a line an attribute, sorted."""

from __future__ import annotations

from collections.abc import Mapping

#: Longer values are left out: the job was given them otherwise, and the file crosses the wire with each cluster.
_VALUE_LONGEST = 16 << 10


def job_file(attributes: Mapping[str, str]) -> str:
    """The file of a whole ad; marks stay in it."""
    lines = [_line(name, text) for name, text in attributes.items() if len(text) <= _VALUE_LONGEST]
    lines.sort(key=str.lower)
    return "".join(lines)


def _line(name: str, text: str) -> str:
    return f"{name} = {text}\n" if "\n" not in text else f"{name} = {text.replace(chr(10), ' ')}\n"


def patched(job_ad: str, changes: Mapping[str, str]) -> str:
    """The file with some attributes changed: that of a proc whose delta holds this `ad`."""
    lines = {line.partition(" = ")[0]: line + "\n" for line in job_ad.split("\n") if line}
    lines |= {name: _line(name, text) for name, text in changes.items()}
    return "".join(sorted(lines.values(), key=str.lower))
