"""Saved steps: written whole, found again, gone on from."""
