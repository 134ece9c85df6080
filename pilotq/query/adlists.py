"""Answers from ads that are all at hand: those of the pool, and those of files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from pilotq.condor import expressions, formats, tables
from pilotq.condor.formats import Local
from pilotq.condor.options import Query
from pilotq.condor.statustables import status_table
from pilotq.condor.tables import Batch
from pilotq.errors import UserError
from pilotq.query.adfiles import read_ads


class WholeAd(Protocol):
    """An ad that can be printed."""

    def get(self, name: str, /) -> str | None: ...

    def attributes(self, only: Iterable[str] = ()) -> dict[str, str]: ...


class AdList:
    """One query on these ads.

    Units: now in seconds since 1970.
    """

    def __init__(self, query: Query, ads: Iterable[WholeAd], *, now: float, local: Local, user: str = "") -> None:
        self.query = query
        self.now = now
        self.local = local
        self.user = user
        constraint = query.constraint
        self._constraint = expressions.compiled(constraint) if constraint else None
        self.ads = self._sorted(list(self._chosen(ads)))

    @classmethod
    def of_file(cls, query: Query, *, now: float, local: Local, user: str = "") -> AdList:
        """Raises: UserError when the file of the query does not hold ads."""
        try:
            ads = read_ads(query.text, query.form)
        except UserError as error:
            raise UserError(f"Error: {query.file}: {error}") from None
        if query.tool == "condor_history" and not query.forwards:
            ads.reverse()
        return cls(query, ads, now=now, local=local, user=user)

    # ---- which

    def _chosen(self, ads: Iterable[WholeAd]) -> Iterator[WholeAd]:
        query, left = self.query, self.query.limit
        is_wanted = self._is_slot_wanted if query.tool == "condor_status" else self._is_job_wanted
        since = expressions.compiled(query.since) if query.since else None
        for number, ad in enumerate(ads):
            if left == 0 or number == query.scan_limit:
                return
            if since is not None and expressions.is_true(since.evaluate(ad, self.now)):
                return
            if is_wanted(ad) and self._is_match(ad):
                yield ad
                left = None if left is None else left - 1

    def _is_match(self, ad: WholeAd) -> bool:
        return self._constraint is None or expressions.is_true(self._constraint.evaluate(ad, self.now))

    def _is_job_wanted(self, ad: WholeAd) -> bool:
        query = self.query
        if query.owners and tables.word(ad, "owner") not in query.owners:
            return False
        if not query.ids:
            is_any = query.owners or not query.is_mine_only
            return bool(is_any) or tables.word(ad, "owner") == self.user
        cluster, proc = int(tables.number(ad, "clusterid")), int(tables.number(ad, "procid"))
        return (cluster, proc) in query.ids or (cluster, None) in query.ids

    def _is_slot_wanted(self, ad: WholeAd) -> bool:
        asked = {name.lower() for name in self.query.owners}
        return not asked or bool(asked & {tables.word(ad, "name").lower(), tables.word(ad, "machine").lower()})

    def _sorted(self, ads: list[WholeAd]) -> list[WholeAd]:
        for text in reversed(self.query.sort):
            expression = expressions.compiled(text)
            ads.sort(key=lambda ad: _rank(expression.evaluate(ad, self.now)))
        return ads

    # ---- what is printed

    def answer(self) -> Iterator[str]:
        query = self.query
        if query.output == "mask":
            yield from self._mask()
        elif query.totals_only and query.tool == "condor_q" and query.output != "totals":
            yield from printed([tables.summary({"": self._counts()}, self.now)], query.output)
        elif query.output in ("long", "json", "jsonl", "xml"):
            ads = (ad.attributes(query.attributes) for ad in self.ads)
            yield from printed(ads, query.output, always=query.tool == "condor_history")
        elif query.tool == "condor_status":
            table = query.kind if query.kind != "machines" else query.output
            yield status_table("machines" if table == "nobatch" else table, self.ads, self.now, query.totals_only)
        else:
            yield from self._jobs()

    def _mask(self) -> Iterator[str]:
        mask = self.query.mask
        rows = [mask.fields(ad, self.now, self.local) for ad in self.ads]
        widths = None
        if mask.headings and (rows or self.query.tool != "condor_status"):
            rows.insert(0, mask.heading_fields())
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for fields in rows:
            yield mask.row(fields, widths)

    def _jobs(self) -> Iterator[str]:
        query = self.query
        is_history = query.tool == "condor_history"
        if not is_history:
            yield f"\n\n-- Jobads: {query.file}\n"
        if query.output == "batch":
            yield tables.batch_table(self._batches(), self.local)
        elif query.output == "analyze":
            raise UserError("Error: -analyze is about the jobs of this pool, not those of a file")
        elif query.output != "totals":
            yield tables.HEADINGS[query.output]
            for ad in self.ads:
                cluster, proc = int(tables.number(ad, "clusterid")), int(tables.number(ad, "procid"))
                rest = tables.row(query.output, ad, self.now, self.local, query.cumulative)
                yield tables.cut(f"{tables.job_name(cluster, proc)} {rest}", query.width)
        if not is_history and query.output != "run":
            yield f"\n{tables.totals('' if query.old_summary else 'query', self._counts())}\n"

    def _counts(self) -> Counter[int]:
        return Counter([int(tables.number(ad, "jobstatus")) for ad in self.ads])

    def _batches(self) -> list[Batch]:
        batches: dict[tuple[str, str], Batch] = {}
        clusters: set[int] = set()
        for ad in self.ads:
            cluster, proc = int(tables.number(ad, "clusterid")), int(tables.number(ad, "procid"))
            owner, name = tables.word(ad, "owner"), tables.word(ad, "jobbatchname") or f"ID: {cluster}"
            batch = batches.setdefault(
                (owner, name), Batch(owner, name, tables.number(ad, "qdate"), first=(cluster, proc))
            )
            if cluster not in clusters:
                clusters.add(cluster)
                batch.total += int(tables.number(ad, "totalsubmitprocs"))
            batch.counts[int(tables.number(ad, "jobstatus"))] += 1
            batch.last = (cluster, proc)
        for batch in batches.values():
            # An ad may not say of how many jobs its cluster was.
            batch.total = max(batch.total, sum(batch.counts.values()))
        return list(batches.values())


def _rank(value: Any) -> tuple[int, Any]:
    """Numbers before strings, and both before what is neither."""
    # Undefined and error are numbers in Python.
    if isinstance(value, bool | int | float) and not isinstance(value, type(expressions.UNDEFINED)):
        return 0, value
    return (1, value.lower()) if isinstance(value, str) else (2, 0)


def printed(ads: Iterable[dict[str, str]], output: str, always: bool = False) -> Iterator[str]:
    """Whole ads as long, json, jsonl or xml; `always`: brackets of an empty json list too."""
    if output == "long":
        for ad in ads:
            yield formats.long_text(ad)
    elif output == "jsonl":
        for ad in ads:
            yield formats.json_line(ad) + "\n"
    elif output == "xml":
        yield formats.XML_HEAD
        for ad in ads:
            yield formats.xml_text(ad)
        yield formats.XML_FOOT
    elif output == "json":
        first = True
        for ad in ads:
            yield ("[\n" if first else ",\n") + formats.json_object(ad) + "\n"
            first = False
        if not first or always:
            yield "[\n]\n" if first else "]\n"
    else:
        raise UserError(f"no such output: {output}")
