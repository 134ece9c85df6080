"""`python -m pilotq.keeper FD NONCE SERIAL`: started by the worker only."""

from __future__ import annotations

import sys

from pilotq.keeper.process import main

main(sys.argv[1:])
