"""Durations, sizes and ids as people write and read them."""

from __future__ import annotations

import re
from typing import NamedTuple

from pilotq.errors import UserError

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_LONG = {"sec": "s", "second": "s", "min": "m", "minute": "m", "hr": "h", "hour": "h", "day": "d", "week": "w"}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)\s*")
_CLOCK = re.compile(r"(?:([0-9]+)-)?([0-9]+):([0-5]?[0-9]):([0-5]?[0-9](?:\.[0-9]+)?)")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([KMGTPE]?)(?:i?B)?", re.IGNORECASE)
_IDS = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,18})(?:-([0-9]{1,18})(?::([0-9]{1,18}))?)?)?")
_PREFIXES = "KMGTPE"


def parse_duration(text: str) -> float:
    """Seconds of "90", "1.5", "1h 5m", "2 days", "HH:MM:SS" or "D-HH:MM:SS".

    Units: a number alone is seconds.
    Raises: UserError.
    """
    stripped = text.strip()
    clock = _CLOCK.fullmatch(stripped)
    if clock:
        days, hours, minutes, seconds = clock.groups()
        return int(days or 0) * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    total = 0.0
    seen: set[str] = set()
    position = 0
    while position < len(stripped):
        part = _PART.match(stripped, position)
        unit = _duration_unit(part[2]) if part else ""
        alone = bool(part) and part is not None and not part[2] and position == 0 and part.end() == len(stripped)
        if part is None or unit in seen or not (unit or alone):
            break
        seen.add(unit)
        total += float(part[1]) * _SECONDS[unit or "s"]
        position = part.end()
    if not stripped or position < len(stripped):
        raise UserError(f"not a duration: {text!r}", "write 0 or more: seconds, 1h 5m, or HH:MM:SS")
    return total


def _duration_unit(word: str) -> str:
    lower = word.lower()
    if lower in _SECONDS:
        return lower
    return _LONG.get(lower.removesuffix("s"), "")


def parse_size(text: str) -> int:
    """Bytes of "1048576", "512K", "2.5G", "2.5 GiB"; every prefix is a power of 1024, as in HTCondor.

    Raises: UserError.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UserError(f"not a size: {text!r}", "write 0 or more: bytes, or a number with K, M, G or T, like 2.5G")
    power = _PREFIXES.index(match[2].upper()) + 1 if match[2] else 0
    return int(float(match[1]) * 1024**power) if "." in match[1] else int(match[1]) * int(1024**power)


class Ids(NamedTuple):
    """Tasks of one cluster; `procs` None: all of them."""

    cluster: int
    procs: range | None

    def __str__(self) -> str:
        if self.procs is None:
            return str(self.cluster)
        first, last, step = self.procs.start, self.procs[-1], self.procs.step
        tail = "" if last == first else f"-{last}" + (f":{step}" if step > 1 else "")
        return f"{self.cluster}.{first}{tail}"


def parse_ids(text: str) -> Ids:
    """The tasks meant by "7", "7.3", "7.1-100" or "7.1-100:2" (both ends are in it).

    Raises: UserError.
    """
    match = _IDS.fullmatch(text.strip())
    if match is None:
        raise UserError(f"not an id: {text!r}", "write 7, 7.3, 7.1-100 or 7.1-100:2")
    cluster, first, last, step = match.groups()
    if first is None:
        return Ids(int(cluster), None)
    procs = range(int(first), int(last or first) + 1, int(step or 1) or 1)
    if not procs or step == "0":
        raise UserError(f"no task is in {text!r}", "the second number must not be below the first, the step not 0")
    return Ids(int(cluster), procs)


def format_duration(seconds: float) -> str:
    """Two units at most: "0.25 s", "42 s", "3m 05s", "2h 10m", "4d 03h"."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def format_size(size_bytes: float) -> str:
    """Three figures and a prefix of 1024: "512 B", "2.5 GiB"."""
    value = float(size_bytes)
    if abs(value) < 1024:
        return f"{value:.0f} B"
    for prefix in _PREFIXES:
        value /= 1024
        if abs(value) < 1023.95 or prefix == _PREFIXES[-1]:
            break
    return f"{value:.0f} {prefix}iB" if abs(value) >= 99.95 else f"{value:.1f} {prefix}iB"


def format_count(number: int, thing: str) -> str:
    """ "1 task", "2 tasks", "10,000 tasks"."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def printable(text: str) -> str:
    """For a log or a terminal: what would move the cursor, begin a line or turn the writing round becomes `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
