"""The part that decides: synchronous, without sockets, files, clocks or random numbers."""
