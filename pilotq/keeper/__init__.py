"""Start, contain and reap many tasks at once.

A worker has a few keepers: plain single-threaded processes that are the parents of all tasks. `keepers.Keepers` is the
worker's side; `process` is the keeper itself (`python -m pilotq.keeper`), over `attempt` (one attempt: what is started,
with which environment, how it ended), `family` (which processes are whose, until none is left), `limits` (what it may
use) and `agenda` (timers, and what takes long).

When a keeper dies, the worker kills what it kept, reports it lost and starts another. When the worker dies, its keepers
kill all and leave.
"""
