"""What the component checks report: a problem with a name or its arguments, not yet tied to a place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One problem (or notice) about a component.

    Args:
        code: stable identifier, such as ``unknown-component``.
        message: the fact and the fix, for a person.
        suggestion: text that may replace the offending name as it stands, or None.
    """

    code: str
    message: str
    suggestion: str | None = None
