"""Numbers that several params declare by, or check against."""

# More than anyone waits for, and than any device holds: beyond these a number is a slip of the keyboard.
MANY = 10**9  # steps, passes or tokens
MANY_SEQUENCES = 2**20
# The label of a position without a target, in every batch (`tune.data`, which would import torch).
IGNORE_INDEX = -100
