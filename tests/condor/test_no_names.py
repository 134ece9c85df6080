"""The library of HTCondor where this host's name cannot be looked up."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import sys
from pilotq.condor import expressions
assert expressions.classad2.ExprTree('stringListMember("a", "a,b")').eval() is True
assert "htcondor2" not in sys.modules
"""


def test_expressions_need_no_name_server() -> None:
    """Where HTCondor itself would ask for the address of this host twenty times, three seconds apart."""
    words = [sys.executable, "-c", CODE]
    if not os.geteuid():
        apart = ["unshare", "--net", "--uts", "sh", "-c", 'hostname nobody-knows-this && exec "$@"', "sh"]
        if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode == 0:
            words = [*apart, *words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=15, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_functions_of_htcondor_are_known() -> None:
    from pilotq.condor.expressions import classad2

    for text, value in (
        ('stringListIMember("A", "a,b")', True),
        ('stringListRegexpMember("b.*", "a,bc")', True),
        ('splitUserName("a@b")', ["a", "b"]),
        ('envV1ToV2("A=1")', "A=1"),
        ('split("a b")', ["a", "b"]),
    ):
        assert classad2.ExprTree(text).eval() == value, text


@pytest.mark.parametrize("name", ["stringListMember", "splitSlotName"])
def test_the_quick_way_is_the_one_taken(name: str) -> None:
    """It hangs on a name inside the library: when that is gone, this fails and says so."""
    code = f'import classad2; print(classad2.ExprTree(\'{name}("a", "a")\').eval() is classad2.Value.Error)'
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert plain.stdout == "True\n", "known from the start: pilotq need do nothing"
