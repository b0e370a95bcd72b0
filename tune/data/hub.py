"""Rows of datasets on the Hugging Face hub, through the `datasets` library."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from tune.data.files import Row
from tune.errors import DataError


def read_hub(
    source: str, split: str, name: str | None, revision: str | None, data_files: Any = None
) -> Iterator[Row]:
    """Yield the rows of a hub dataset, downloaded once and then read from the cache.

    Raises:
        DataError: it does not exist, is gated, has no such split or configuration, or cannot be reached.
    """
    import datasets
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

    from tune.utils.hub_access import connect

    try:
        with _offline_without_network():
            loaded = datasets.load_dataset(
                source, name=name, split=split, revision=revision, data_files=data_files
            )
    except (GatedRepoError, datasets.exceptions.DatasetNotFoundError) as error:
        raise DataError(_not_found(source, revision, str(error))) from error
    except (ConnectionError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        reason = connect(kind="dataset").explain(error, source, revision) or _first_lines(error)
        raise DataError(
            f"{source!r} is no local file or folder, and the Hugging Face hub could not be asked for a dataset of that "
            f"name ({reason}). Without network, give a local json, jsonl, csv or parquet file as dataset.source"
        ) from error
    except (ValueError, TypeError, datasets.exceptions.DatasetGenerationError) as error:
        # Unknown splits and configurations come as ValueError, and the text lists those there are.
        raise DataError(f"the dataset {source!r} cannot be loaded: {_first_lines(error)}") from error
    except RuntimeError as error:
        # `datasets` runs no scripts since 4.0, and says so with a RuntimeError.
        raise DataError(
            f"the dataset {source!r} cannot be loaded: {_first_lines(error)}. Where a dataset is a script, name one "
            "that holds data files (dataset.source), or a local copy of its rows"
        ) from error
    return _rows(source, split, loaded)


@contextmanager
def _offline_without_network() -> Iterator[None]:
    """Use the cache alone where the hub's address does not resolve: retries would take half a minute.

    Raises:
        ConnectionError: there is no network, and the cache does not hold what was asked for.
    """
    import datasets
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname or ""
    unresolved = None
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    # A proxy resolves names for us.
    if not getproxies():
        try:
            socket.getaddrinfo(host, 443)
        except OSError as error:
            unresolved = error
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        if unresolved is None:
            raise
        raise ConnectionError(f"{host} does not resolve: {unresolved}; nor is it in the cache") from error
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def read_saved_to_disk(folder: Path, split: str) -> Iterator[Row]:
    """Yield the rows of a dataset that `datasets` saved with `save_to_disk`."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} cannot be loaded as a saved dataset: {_first_lines(error)}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise DataError(f"{folder} has no split {split!r}, only {', '.join(loaded)}")
        loaded = loaded[split]
    elif split != "train":
        raise DataError(f"{folder} is saved without splits, so all of it is 'train'; there is no {split!r}")
    return _rows(str(folder), split, loaded)


def _rows(source: str, split: str, loaded: Any) -> Iterator[Row]:
    return (Row(f"{source} {split}, row {number}", values) for number, values in enumerate(loaded, start=1))


def _not_found(source: str, revision: str | None, text: str) -> str:
    from tune.utils.hub_access import connect

    hub = connect(kind="dataset")
    # `datasets` drops the hub's own error on the way, so its words tell the two apart.
    if "gated" in text.lower() or "authenticated" in text.lower():
        return hub.explain_gated(source)
    at = f" at revision {revision!r}" if revision else ""
    return (
        f"there is no dataset {source!r}{at} on the hub that you may read, and no local file or folder of that "
        "name. A local file is given by its path, such as ./data/train.jsonl; a private dataset needs a token: "
        f"{hub.ways_to_give_a_token}"
    )


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:400]}" if lines else type(error).__name__
