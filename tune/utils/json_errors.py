"""What is wrong with a JSON file, in words for the person who has it: Python's are advice to programmers."""

from __future__ import annotations

_MAX_SHOWN = 200


def describe_json_error(error: Exception) -> str:
    """Return why `json.loads` could not read a text.

    Args:
        error: the ValueError or RecursionError that it raised.
    """
    if isinstance(error, RecursionError):
        return "its brackets are nested deeper than any configuration's"
    text = str(error)
    if "integer string conversion" in text:
        return "it holds a number of thousands of digits"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return text[:_MAX_SHOWN]
