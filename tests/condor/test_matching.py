"""What a slot makes of the words that were left open until the match."""

from __future__ import annotations

import pytest

from pilotq.condor.matching import matched, shielded
from pilotq.model import Description

MACHINE = 'Cpus = 4\nMachine = "node1"\nMemory = 2048\nKFlops = 1.5\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$$(Cpus)", "4"),
        ("$$([1]) $$([2]) $$([0])", "1 2 0"),
        ("-m=$$(machine).log", "-m=node1.log"),
        ("$$([Cpus * 2]) $$([TARGET.Memory / 4 + ClusterId])", "8 519"),
        ('$$([strcat("a", Machine)])', "anode1"),
        ("$$(KFlops)", "1.5"),
        ("$$(Nothing:else)$$(Nothing:)", "else"),
        ("$$ $$( $$(a b) $(Cpus)", "$$ $$( $$(a b) $(Cpus)"),
    ],
)
def test_a_word(text: str, expected: str) -> None:
    d = Description(argv=["./x", text], env={"A": text}, job_ad='ClusterId = 7\nCmd = "x"\n')
    found = matched(d, MACHINE)
    assert (found.argv, found.env) == (["./x", expected], {"A": expected})


@pytest.mark.parametrize("text", ["$$(Nothing)", "$$([Nothing + 1])", "$$([1 +])"])
def test_what_the_slot_does_not_say(text: str) -> None:
    with pytest.raises(ValueError, match="Cannot expand"):
        matched(Description(argv=[text]), MACHINE)


def test_what_is_in_a_reference_does_not_split_a_value() -> None:
    text, restore = shielded("a $$([Cpus * 2]) b$$(X:y z)")
    assert [restore(word) for word in text.split()] == ["a", "$$([Cpus * 2])", "b$$(X:y z)"]
