"""Reposer re-poses people: person images in a wanted pose, larger Re-ID sets, and whether they help."""

__version__ = "0.1.0"
