"""`python -m pilotq.query --db PATH --socket PATH`."""

from pilotq.query.server import main

main()
