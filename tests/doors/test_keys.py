"""The list of keys that may come in: made, expired, revoked, replaced."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from pilotq import keys
from pilotq.errors import UserError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    keys.make_keys(tmp_path)
    return tmp_path


def names(home: Path, now: float | None = None) -> set[tuple[str, str]]:
    return {(key.role, key.name) for key in keys.authorized(home, now).values()}


def test_a_key_is_good_until_its_end_and_not_a_second_longer(home: Path) -> None:
    end = float(int(time.time()) + 100)
    path = keys.new_token(home, "worker", "cern", end)
    assert ("worker", "cern") in names(home, end - 1)
    assert ("worker", "cern") not in names(home, end)
    token = keys.read_token(path, "worker")
    assert token.expires_at == end and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token.secret not in (home / "keys/authorized/worker/cern.pub").read_text()


def test_a_revoked_key_is_gone_with_its_token_and_does_not_come_back(home: Path) -> None:
    keys.revoke(home, "worker", "site")
    keys.make_keys(home)
    assert names(home) == {("foreman", "site")}
    assert not (home / "worker.token").exists()
    keys.new_token(home, "worker", "site")
    assert names(home) == {("foreman", "site"), ("worker", "site")}
    assert (home / "worker.token").exists()


def test_names_are_used_once_and_are_no_paths(home: Path) -> None:
    with pytest.raises(UserError, match="already"):
        keys.new_token(home, "worker", "site")
    for name in ("", ".", "..", "../x", "a/b", "a@b", "a b", "-x", "a\n", "x" * 64):
        with pytest.raises(UserError, match="no name"):
            keys.new_token(home, "worker", name)
    keys.new_token(home, "submit", "site")


def test_the_servers_keys_change_in_two_steps(home: Path) -> None:
    old = keys.server_pair(home, "master")
    keys.new_token(home, "worker", "cern")
    keys.begin_rotation(home)
    with pytest.raises(UserError, match="already"):
        keys.begin_rotation(home)
    new = keys.next_pair(home, "master")
    assert new is not None and keys.server_pair(home, "master") == old, "the servers still have the old ones"
    for name in ("site", "cern"):
        token = keys.read_token(keys.token_path(home, "worker", name), "worker")
        assert token.servers(is_master=True) == [old.public, new.public]
        assert len(token.servers(is_master=False)) == 2 and not token.serves
    foreman = keys.read_token(home / "foreman.token", "foreman")
    assert [pair.public for pair in foreman.pairs()] == token.servers(is_master=False)
    keys.finish_rotation(home)
    assert keys.server_pair(home, "master") == new
    token = keys.read_token(home / "worker.token", "worker")
    assert token.servers(is_master=True) == [new.public], "the old one is not believed any more"
    with pytest.raises(UserError, match="no next keys"):
        keys.finish_rotation(home)


def test_a_token_of_before_there_were_pairs_to_serve_with(home: Path) -> None:
    token = keys.read_token(home / "foreman.token", "foreman")
    old = keys.Token("foreman", "site", token.public, token.secret, token.master, token.foreman)
    assert old.pairs() == [keys.KeyPair(token.public, token.secret)]
