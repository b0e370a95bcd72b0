"""Model families."""

from __future__ import annotations
