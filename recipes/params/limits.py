"""More than anyone waits for, and than any device holds: beyond these a number is a slip of the keyboard."""

MANY = 10**9  # steps, passes or tokens
MANY_SEQUENCES = 2**20
