"""Transforms of rows for tests, which worker processes import: no torch in here."""

from __future__ import annotations

import os

from tune.data import OpenAIToMessages
from tune.utils import workers


def end_its_worker(values):
    if workers._is_serving and values["messages"][0]["content"] == "question 150":
        os.abort()
    return OpenAIToMessages()(values)
