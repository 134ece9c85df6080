"""One description for all procs: what differs is filled in for each."""

from __future__ import annotations

import msgspec
import pytest

from pilotq.keeper.recipe import Recipe, Recipes
from pilotq.keeper.talk import Launch
from pilotq.model import CLUSTER_MARK, PROC_MARK, Description, fill
from pilotq.wire import Token

AD = f"ProcId = {PROC_MARK}\nGlobalJobId = {CLUSTER_MARK}.{PROC_MARK}#1\nOwner = é\nClusterId = {CLUSTER_MARK}"
FULL = Description(
    argv=["./x", f"{PROC_MARK}{PROC_MARK}"], job_ad=AD, stdin=f"in.{PROC_MARK}", env={"N": f"{CLUSTER_MARK}", "M": "1"}
)


def described(recipe: Recipe, cluster: int, proc: int, delta: bytes = b"") -> Description:
    return recipe.description(Launch(Token(cluster, proc, 1), b"", delta, "/s", "/c", {}, ""))


@pytest.mark.parametrize("delta", [b"", msgspec.msgpack.encode({"argv": ["./x", PROC_MARK * 2]})])
def test_every_proc_of_every_cluster_gets_its_own_numbers(delta: bytes) -> None:
    body = msgspec.msgpack.encode(FULL)
    recipes = Recipes()
    for cluster, proc in [(7, 0), (7, 12), (8, 12), (7, 3)]:
        found = described(recipes.get(body), cluster, proc, delta)
        assert found.job_ad == f"ProcId = {proc}\nGlobalJobId = {cluster}.{proc}#1\nOwner = é\nClusterId = {cluster}"
        assert found.argv == ["./x", f"{proc}{proc}"]
        assert found.stdin == f"in.{proc}"
        assert found.env == {"N": str(cluster), "M": "1"}
        assert found == msgspec.convert(fill(msgspec.to_builtins(FULL), cluster, proc), Description)


def test_what_has_no_marks_is_shared() -> None:
    recipe = Recipe(msgspec.msgpack.encode(Description(argv=["/bin/true"], job_ad="A = 1\n")))
    assert described(recipe, 1, 2) is described(recipe, 3, 4)
