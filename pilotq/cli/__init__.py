"""The `pilotq` command."""
