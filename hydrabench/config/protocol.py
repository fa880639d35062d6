"""Protocol ids: settings that differ from a protocol's defaults, spelt out."""

from __future__ import annotations


def unless(default: float, letter: str, value: float) -> str:
    """Return "" for the default, otherwise a part of a protocol id such as "-s3"."""
    return "" if value == default else f"-{letter}{value:g}"
