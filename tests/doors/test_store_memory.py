"""What tests may do with the store in memory beyond the protocol."""

from __future__ import annotations

import pytest
from store_data import cluster

from pilotq.store import StoreFull
from pilotq.store.memory import MemoryStore


def test_it_can_be_full() -> None:
    store = MemoryStore()
    store.is_full = True
    with pytest.raises(StoreFull):
        store.commit([cluster(1)])
    assert not store.clusters
    assert store.release_ballast() and not store.has_ballast
    store.commit([cluster(1)])
    assert not store.restore_ballast()
    store.is_full = False
    assert store.restore_ballast() and store.has_ballast
