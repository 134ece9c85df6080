"""Writes docs/performance.md and its plots from the stored results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentences
from figures import US
from plots import Line, Point, plot

Figure = dict[str, Any]
_LIMITS = ("posix_spawn in C", "C with the same files", "C with files and delivery", "cp -r")
_NOT_SHOWN = {"what", "peer"}


def read_results(path: Path) -> tuple[list[Figure], list[Figure]]:
    """Runs (what was started when, on what) and figures."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    return [line for line in lines if "run" in line], [line for line in lines if "row" in line]


def write_report(results: Path, page: Path) -> None:
    """The page, and the plots in the folder beside it."""
    runs, figures = read_results(results)
    folder = results.parent
    plots = draw(figures)
    for name, text in plots.items():
        (folder / name).write_text(text, "utf-8")
    parts = [sentences.TOP, _summary(figures), _short(figures), sentences.RULES, _machine(runs), _peers(runs)]
    for row in sorted({figure["row"] for figure in figures}, key=lambda one: (one == 0, one)):
        of_row = [figure for figure in figures if figure["row"] == row]
        parts += [_section(row, runs, of_row, plots, folder.name)]
    page.write_text("\n".join(part.rstrip("\n") + "\n" for part in parts), "utf-8")


# ---- tables ----------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Of Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return (
        "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows)]) + "\n"
    )


def number(value: float) -> str:
    """Three digits that count, or all before the point."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _value(figure: Figure, *, with_range: bool = True) -> str:
    if figure["skipped"]:
        return f"not measured: {figure['skipped']}"
    unit = "" if figure["unit"] == "ratio" else f" {figure['unit']}"
    text = f"**{number(figure['value'])}**{unit}"
    rounds = figure["rounds"]
    if with_range and len(rounds) > 1:
        text += f" ({number(min(rounds))} to {number(max(rounds))})"
    return text


def _name(who: str) -> str:
    """A peer as it calls itself."""
    head, comma, rest = who.partition(",")
    return (sentences.PEERS[head].name if head in sentences.PEERS else head) + comma + rest


def _who(figure: Figure) -> str:
    names = [_name(figure["who"]), *([_name(figure["ratio_to"])] if figure["ratio_to"] else [])]
    return " / ".join(names)


def _met(figure: Figure) -> str:
    return {True: "yes", False: "**no**", None: "" if not figure["goal"] else "?"}[figure["met"]]


def _varying(figures: Sequence[Figure]) -> list[str]:
    """Settings that are not the same for all figures of a row."""
    names = dict.fromkeys(name for figure in figures for name in figure["settings"])
    values = {name: {str(figure["settings"].get(name, "")) for figure in figures} for name in names}
    return [name for name in names if len(values[name]) > 1 and name not in _NOT_SHOWN]


def _settings(names: Iterable[str], settings: Mapping[str, Any]) -> str:
    shown = (f"{name} {settings[name]:,}" if isinstance(settings[name], int) else f"{name} {settings[name]}"
             for name in names if name in settings)  # fmt: skip
    return ", ".join(shown)


def _summary(figures: Sequence[Figure]) -> str:
    """Every figure that has a goal."""
    rows = []
    for figure in figures:
        if figure["goal"]:
            of_row = [other for other in figures if other["row"] == figure["row"]]
            varying = [name for name in _varying(of_row) if name in ("slots", "tasks", "queued")]
            cells = [str(figure["row"]), figure["name"], _who(figure), _settings(varying, figure["settings"])]
            unit = "" if figure["unit"] == "ratio" else f" {figure['unit']}"
            rows.append([*cells, figure["goal"] + unit, _value(figure, with_range=False), _met(figure)])
    met = sum(figure["met"] is True for figure in figures)
    said = f"{met} of {len(rows)} goals are met."
    return f"## Goals\n\n{said}\n\n" + table(["row", "measure", "of", "with", "goal", "measured", "met"], rows)


def _short(figures: Sequence[Figure]) -> str:
    """Every goal that was not reached, with its reason when one is known."""
    lines = []
    for figure in figures:
        if figure["met"] is False:
            reason = sentences.REASONS.get((figure["row"], figure["name"]), "")
            told = f"{figure['goal']}, measured {_value(figure, with_range=False)}"
            lines.append(f"- Row {figure['row']}, {figure['name']} ({_who(figure)}): {told}. {reason}".rstrip())
    return "## What stays short\n\n" + "\n".join(lines) + "\n" if lines else ""


def _machine(runs: Sequence[Figure]) -> str:
    if not runs:
        return ""
    found = runs[-1]["machine"]
    dates = sorted(run["date"] for run in runs)
    when = dates[0] if dates[0][:10] == dates[-1][:10] else f"{dates[0]} to {dates[-1]}"
    virtual = ", virtual" if found["virtual"] else ""
    rows = [
        ["date", when],
        ["CPU", f"{found['cores']} cores of {found['cpu']}{virtual}"],
        ["memory", f"{found['memory_gib']} GiB"],
        ["kernel", f"{found['kernel']}, {found['system']}"],
        ["file systems", ", ".join(f"{name}: {kind}" for name, kind in runs[-1]["file systems"].items())],
        ["Python, compiler", f"{found['python']}, {found['compiler']}"],
        ["pilotq", runs[-1]["pilotq"]],
    ]
    return "## The machine\n\n" + table(["what", "which"], rows)


def _peers(runs: Sequence[Figure]) -> str:
    versions = runs[-1]["versions"] if runs else {}
    rows = [
        [peer.name, versions.get(key, ""), peer.durable, peer.promises, peer.here]
        for key, peer in sentences.PEERS.items()
    ]
    return "## What each guarantees\n\n" + table(["system", "version", "durable", "guarantees", "here"], rows)


def _section(row: int, runs: Sequence[Figure], figures: Sequence[Figure], plots: Iterable[str], folder: str) -> str:
    known = sentences.ROWS[row]
    title = f"Row {row}: {known.title}" if row else known.title
    varying = _varying(figures)
    names = dict.fromkeys(name for figure in figures for name in figure["settings"])
    same = _settings([name for name in names if name not in varying and name not in _NOT_SHOWN], figures[0]["settings"])
    run = next((run for run in reversed(runs) if run["run"] == row), None)
    facts = [f"Settings: {same}."] if same else []
    if run is not None:
        count = "one round" if run["rounds"] == 1 else f"{run['rounds']} rounds"
        facts.append(f"{count}, {run['date']}; load of the machine before: {run['load']:.1f}.")
        if run["quick"]:
            facts.append("**Only a quick try: these figures mean little.**")
    rows = [_figure_cells(figure, varying) for figure in figures]
    head = ["measure", "of", "with", "median (least to greatest)", "goal", "met", "CPU a task, us; also"]
    pictures = [f"![{name.removesuffix('.svg')}]({folder}/{name})" for name in plots if row in _SHOWN_IN[name]]
    parts = [f"## {title}\n", known.text.strip() + "\n", " ".join(facts) + "\n", "\n\n".join(pictures) + "\n"]
    return "\n".join([*(part for part in parts if part.strip()), table(head, rows)])


def _figure_cells(figure: Figure, varying: Sequence[str]) -> list[str]:
    details = figure["details"]
    parts = [f"{role} {number(spent)}" for role, spent in details.get("cpu_us", {}).items() if spent >= 0.05]
    for kind in ("cores used", "also"):
        parts += [f"{name}: {number(value)}" for name, value in details.get(kind, {}).items()]
    if "failed" in details:
        parts.append(f"**failed: {details['failed']}**")
    goal = figure["goal"]
    with_what = _settings(varying, figure["settings"])
    return [figure["name"], _who(figure), with_what, _value(figure), goal, _met(figure), ", ".join(parts)]


# ---- plots -----------------------------------------------------------------------------------------------------

_SHOWN_IN = {
    "rate-slots.svg": (0,),
    "latency-slots.svg": (0,),
    "rate-queue.svg": (9,),
    "dispatch-queue.svg": (9,),
    "latency-queue.svg": (9,),
}


def draw(figures: Sequence[Figure]) -> dict[str, str]:
    """Plots by file name; without points there is none."""
    found: dict[str, str] = {}
    kinds = [
        ("rate-slots.svg", "Real tasks a second against slots", "rate", 0, "slots"),
        ("latency-slots.svg", "Latency of one task against slots", "latency p50", 0, "slots"),
        ("rate-queue.svg", "Real tasks a second against the length of the queue", "rate", 9, "queued"),
        ("dispatch-queue.svg", "Dispatch ceiling against the length of the queue", "dispatch", 9, "queued"),
        ("latency-queue.svg", "Latency of one task against the length of the queue", "latency p50", 9, "queued"),
    ]
    for name, title, what, row, key in kinds:
        lines = _lines([one for one in figures if one["row"] == row and one["name"] == what], key)
        if any(line.points for line in lines):
            unit = "milliseconds, median" if what.startswith("latency") else "tasks a second"
            ticks = sorted({point.x for line in lines for point in line.points}) if key == "slots" else ()
            x_title = "slots" if key == "slots" else "other tasks waiting in the queue"
            found[name] = plot(title, x_title, unit, lines, ticks)
    return found


def _lines(figures: Iterable[Figure], key: str) -> list[Line]:
    lines: dict[str, Line] = {}
    for figure in figures:
        if figure["skipped"] or figure["ratio_to"] or not figure["settings"].get(key):
            continue
        who = figure["settings"].get("peer") or figure["who"].partition(",")[0]
        new = Line(_name(who), is_limit=who in _LIMITS, is_ours=who == US)
        new.colour = list(sentences.PEERS).index(who) if who in sentences.PEERS else 0
        line = lines.setdefault(who, new)
        low, high = min(figure["rounds"]), max(figure["rounds"])
        line.points.append(Point(figure["settings"][key], figure["value"], low, high))
    return list(lines.values())
