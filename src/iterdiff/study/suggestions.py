"""Advice on a misspelt word."""

import difflib
from collections.abc import Iterable

MIN_SIMILARITY = 0.5
"""Similarity, between 0 and 1, from which on a word may be what was meant."""


def suggestion(word: str, allowed: Iterable[str]) -> str:
    """Return advice on a word that is not allowed: the nearest allowed word, or all of them."""
    allowed = tuple(allowed)
    if nearest(word, allowed):
        return f"Did you mean `{nearest(word, allowed)}`?"
    return "Choose from " + ", ".join(f"`{name}`" for name in allowed) + "."


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed word that is most similar to `word`; None if none is similar."""
    by_lower = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=MIN_SIMILARITY)
    return by_lower[close[0]] if close else None
