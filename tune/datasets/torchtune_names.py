"""torchtune's names in `torchtune.datasets` that nothing here stands for; the others are the same."""

from __future__ import annotations

GONE = {
    **dict.fromkeys(
        (
            "PreferenceDataset",
            "hh_rlhf_helpful_dataset",
            "preference_dataset",
            "stack_exchange_paired_dataset",
        ),
        "preference tuning is not here",
    ),
    "multimodal": "images are not read here",
}
