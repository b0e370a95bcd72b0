"""Datasets: rows of a file or of the hub as tokens and labels, read and checked before training starts.

Every dataset is a map-style `torch.utils.data.Dataset` of `{"tokens": [...], "labels": [...]}` with a
`report()` of what was read, and `render_prompt(text)`, the text a model is given to answer a user.
"""

from __future__ import annotations

from tune.datasets.alpaca import alpaca_cleaned_dataset, alpaca_dataset
from tune.datasets.chat import chat_dataset
from tune.datasets.concat import ConcatDataset, build_datasets, build_splits
from tune.datasets.getters import get_dataset
from tune.datasets.instruct import instruct_dataset
from tune.datasets.packed import PackedDataset
from tune.datasets.preference import (
    PreferenceDataset,
    UnpairedDataset,
    hh_rlhf_helpful_dataset,
    preference_dataset,
    stack_exchange_paired_dataset,
    unpaired_dataset,
)
from tune.datasets.published import (
    cnn_dailymail_articles_dataset,
    grammar_dataset,
    samsum_dataset,
    slimorca_dataset,
    wikitext_dataset,
)
from tune.datasets.sft import SFTDataset
from tune.datasets.text_completion import TextCompletionDataset, text_completion_dataset
from tune.datasets.tokenized import tokenized_dataset
from tune.datasets.torchtune_names import GONE
from tune.utils.torchtune_names import offer_names

__all__ = [
    "ConcatDataset",
    "PackedDataset",
    "PreferenceDataset",
    "SFTDataset",
    "TextCompletionDataset",
    "UnpairedDataset",
    "alpaca_cleaned_dataset",
    "alpaca_dataset",
    "build_datasets",
    "build_splits",
    "chat_dataset",
    "cnn_dailymail_articles_dataset",
    "get_dataset",
    "grammar_dataset",
    "hh_rlhf_helpful_dataset",
    "instruct_dataset",
    "preference_dataset",
    "samsum_dataset",
    "slimorca_dataset",
    "stack_exchange_paired_dataset",
    "text_completion_dataset",
    "tokenized_dataset",
    "unpaired_dataset",
    "wikitext_dataset",
]

offer_names(__name__, {}, GONE)
