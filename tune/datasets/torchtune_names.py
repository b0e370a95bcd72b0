"""torchtune's names in `torchtune.datasets` that nothing here stands for; the others are the same."""

from __future__ import annotations

GONE = {
    "multimodal": "images are not read here",
}
