"""One seed for everything random."""

from __future__ import annotations

import random

# torch accepts seeds up to 2**64, numpy's legacy generator only below 2**32.
MAX_SEED = 2**32 - 1


def set_seed(seed: int | None = None) -> int:
    """Seed Python, numpy and torch (every device) and return the seed used.

    Args:
        seed: 0 to 2**32 - 1. None draws one from the operating system's entropy, so that it can be written
            down and the run repeated.
    """
    import numpy as np
    import torch

    if seed is None:
        seed = random.SystemRandom().randint(0, MAX_SEED)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed
