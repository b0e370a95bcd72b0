"""How much memory a run needs, has, and ran out of."""
