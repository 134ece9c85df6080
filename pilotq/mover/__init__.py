"""Files between submit side and sandbox, by content.

The head keeps every file once, under the sha256 of its content (`BlobStore`); workers and foremen hold copies (`Cache`)
that a `Fetcher` asks for piece by piece; what is too large for a result is pulled the same way into a `Spool`. The
consumer asks, so nobody is sent more than he wants. Nothing here knows a socket: requests are returned as messages.
"""

from pilotq.mover.blobs import BlobStore
from pilotq.mover.cache import Cache, Fetcher
from pilotq.mover.spool import Pulling, Spool

__all__ = ["BlobStore", "Cache", "Fetcher", "Pulling", "Spool"]
