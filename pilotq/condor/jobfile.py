"""The job's ad as the file that `_CONDOR_JOB_AD` names."""

from __future__ import annotations

from pilotq.condor.expressions import quote
from pilotq.condor.job import Site
from pilotq.condor.jobad import DEFAULTS
from pilotq.model import CLUSTER_MARK, PROC_MARK, ClusterBody

#: Longer values are left out: the job was given them otherwise, and the file crosses the wire with each cluster.
_VALUE_LONGEST = 16 << 10


def job_file(body: ClusterBody, site: Site) -> str:
    """Old ClassAd text, a line an attribute, sorted; with marks."""
    attributes = {
        **DEFAULTS,
        **body.ad,
        "ClusterId": CLUSTER_MARK,
        "ProcId": PROC_MARK,
        "Owner": quote(body.owner),
        "User": quote(f"{body.owner}@{site.schedd_name}"),
        "QDate": str(int(body.submitted_at)),
        "GlobalJobId": quote(f"{site.schedd_name}#{CLUSTER_MARK}.{PROC_MARK}#{int(body.submitted_at)}"),
    }
    lines = [line(name, text) for name, text in attributes.items() if len(text) <= _VALUE_LONGEST]
    lines.sort(key=str.lower)
    return "".join(lines)


def line(name: str, text: str) -> str:
    return f"{name} = {text}\n" if "\n" not in text else f"{name} = {text.replace(chr(10), ' ')}\n"


def patched(job_ad: str, changes: dict[str, str]) -> str:
    """The text with some attributes changed: that of a proc with the `ad` of its delta."""
    lines = {entry.partition(" = ")[0]: entry + "\n" for entry in job_ad.split("\n") if entry}
    for name, text in changes.items():
        lines[name] = line(name, text)
    return "".join(sorted(lines.values(), key=str.lower))
