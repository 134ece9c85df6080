"""executorlib on this machine, with its workers kept between tasks (block allocation). It keeps nothing on disk."""

from __future__ import annotations

from driving import measure, nothing, read_options, results, true
from executorlib import SingleNodeExecutor  # type: ignore[import-not-found,unused-ignore]


def main() -> None:
    options = read_options(__doc__, "rate", "dispatch", "latency")
    function = nothing if options.mode == "dispatch" else true
    with SingleNodeExecutor(max_workers=options.slots, block_allocation=True) as executor:
        measure(options, lambda count: results([executor.submit(function) for _ in range(count)]))


if __name__ == "__main__":
    main()
