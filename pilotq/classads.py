"""HTCondor's ClassAd library, loaded so that it knows its functions and asks no name server."""

from __future__ import annotations

import ctypes

import classad2

__all__ = ["classad2"]


def _learn_functions() -> None:
    """Make the library know HTCondor's own functions (stringListMember, ...), which are errors until then.

    Reading an ad would do it as well, but that initialises all of HTCondor, which looks this host up and waits for
    minutes where no name server answers.
    """
    with open("/proc/self/maps", encoding="utf-8") as maps:
        paths = {line.rstrip("\n").partition("/")[2] for line in maps if "libcondor_utils" in line}
    try:
        ctypes.CDLL("/" + paths.pop())._Z15ClassAdReconfigv()
    except (KeyError, OSError, AttributeError):
        # Another build of the library.
        classad2.parseOne("a = 1")


_learn_functions()
