"""Reposer re-poses people: generate person images in a wanted pose, enlarge Re-ID sets, measure whether it helped."""

__version__ = "0.1.0"
