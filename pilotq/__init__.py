"""A pool of borrowed nodes, with a durable queue and HTCondor's command line."""

__version__ = "0.1.0"
