"""Copyable training scripts, their typed parameters and their configs."""
