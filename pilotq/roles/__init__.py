"""Composition roots: one file a role puts the parts together."""
