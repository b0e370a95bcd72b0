"""Rows of datasets on the Hugging Face hub, through the `datasets` library."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from tune.data.arrow_stream import check_arrow
from tune.data.columns import list_names
from tune.data.files import DataFile
from tune.data.shards import Shard, UnmadeRows
from tune.data.tables import table_rows
from tune.errors import DataError
from tune.utils.escape import escape_control

_BATCH_ROWS = 1000
_DICT_FILE = "dataset_dict.json"


class LoadedRows:
    """The rows of a dataset that `datasets` has loaded, without its decoding of pictures and sounds."""

    def __init__(self, place: str, loaded: Any) -> None:
        self._place = place
        self._loaded = loaded

    @property
    def files(self) -> list[Path] | None:
        """The files that hold the rows and say what their columns are, in order; None where there are none."""
        if not hasattr(self._loaded, "cache_files"):
            return None  # nothing was downloaded
        tables = [Path(entry["filename"]) for entry in self._loaded.cache_files]
        folders = dict.fromkeys(table.parent for table in tables)
        notes = [folder / name for folder in folders for name in ("dataset_info.json", "state.json")]
        return [*tables, *(note for note in notes if note.is_file())] or None

    def __len__(self) -> int:
        return len(self._loaded)

    def shards(self) -> list[Shard]:
        """Return what can be read by itself: the files of rows that are streamed; else all rows as one."""
        if hasattr(self._loaded, "cache_files"):
            return [self]
        number = self._loaded.num_shards
        return [
            LoadedRows(f"{self._place}, shard {index}", self._loaded.shard(number, index))
            for index in range(number)
        ]

    def unmade(self, start: int = 0) -> UnmadeRows:
        """Yield for each row from the `start`-th on what makes it, which here is done with reading it."""
        # What an index picks is copied, one row or many.
        at_once = _BATCH_ROWS if getattr(self._loaded, "_indices", None) is None else 1
        number, rest = 0, self._loaded
        if start and hasattr(rest, "select"):
            number, rest = start, rest.select(range(min(start, len(self)), len(self)))
        try:
            for table in rest.with_format("arrow").iter(at_once):
                for batch in table.to_batches():
                    passed = min(max(start - number, 0), batch.num_rows)
                    rows = table_rows(f"{self._place}, row", batch.slice(passed), number + passed)
                    yield from (row.itself for row in rows)
                    number += batch.num_rows
        except _failures() as error:
            raise DataError(
                f"{self._place} cannot be read beyond row {number:,}: {_first_lines(error)}"
            ) from error


def read_hub(
    source: str,
    split: str,
    name: str | None,
    revision: str | None,
    data_files: Any = None,
    streamed: bool = False,
) -> LoadedRows:
    """Return the rows of a hub dataset, downloaded once and then read from the cache, or streamed from the hub.

    Raises:
        DataError: it does not exist, is gated, has no such split or configuration, or cannot be reached.
    """
    import datasets
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

    from tune.utils.hub_access import connect

    try:
        with _offline_without_network():
            loaded = datasets.load_dataset(
                source, name=name, split=split, revision=revision, data_files=data_files, streaming=streamed
            )
    except (GatedRepoError, datasets.exceptions.DatasetNotFoundError) as error:
        raise DataError(_not_found(source, revision, str(error))) from error
    except (ConnectionError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        reason = connect(kind="dataset").explain(error, source, revision) or _first_lines(error)
        raise DataError(_not_reached(source, reason)) from error
    except RuntimeError as error:
        # `datasets` runs no scripts since 4.0, and says so with a RuntimeError.
        raise DataError(
            f"the dataset {escape_control(source, 200)!r} cannot be loaded: {_first_lines(error)}. Where a dataset is "
            "a script, name one that holds data files (dataset.source), or a local copy of its rows"
        ) from error
    except _failures() as error:
        # Unknown splits and configurations come as ValueError, and the text lists those there are.
        reason = connect(kind="dataset").explain(error, source, revision) or _first_lines(error)
        raise DataError(f"the dataset {escape_control(source, 200)!r} cannot be loaded: {reason}") from error
    return LoadedRows(f"{source} {split}", loaded)


def read_addresses(
    kind: str, split: str, data_files: Any, streamed: bool = False, **options: Any
) -> LoadedRows:
    """Return the rows of files of the web, downloaded once and then read from the cache, or read as they come.

    Args:
        kind: what they hold: json, jsonl, csv, parquet or text.
        split: of those that `data_files` names, or "train".
        data_files: addresses, also by split.
        streamed: keep nothing.
        **options: what `datasets` reads that kind with.

    Raises:
        DataError: one cannot be fetched or read.
    """
    import datasets

    named = escape_control(data_files, 200)
    try:
        loaded = datasets.load_dataset(
            "json" if kind == "jsonl" else kind,
            name=None,
            split=split,
            revision=None,
            data_files=data_files,
            streaming=streamed,
            **options,
        )
    except ImportError as error:
        raise DataError(
            f"{named} cannot be fetched: {_first_lines(error)}. Install what is missing (for http and https: "
            "pip install aiohttp requests), or fetch the file yourself and give its path"
        ) from error
    except _failures() as error:
        raise DataError(
            f"{named} cannot be fetched or read as {kind}: {_first_lines(error)}. Check the address in a browser, or "
            "fetch the file yourself and give its path"
        ) from error
    return LoadedRows(f"{named} {split}", loaded)


def _failures() -> tuple[type[Exception], ...]:
    """Return every kind of exception that `datasets` ends in for data, addresses or answers it cannot use."""
    import datasets
    import pyarrow

    from tune.utils.hub_access import HUB_FAILURES

    web = sys.modules.get("aiohttp")  # asked for by the addresses that need it
    return (
        *HUB_FAILURES,
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        ImportError,
        OverflowError,
        pyarrow.ArrowException,
        datasets.exceptions.DatasetsError,
        *([web.ClientError] if web else []),
    )


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


def read_saved_to_disk(folder: Path, split: str) -> LoadedRows:
    """Return the rows of a dataset that `datasets` saved with `save_to_disk`."""
    import datasets

    named = escape_control(folder)
    try:
        if (folder / _DICT_FILE).is_file():
            splits = json.loads((folder / _DICT_FILE).read_text(encoding="utf-8"))["splits"]
            if split not in splits:
                raise DataError(f"{named} has no split {split!r}, only {list_names(list(map(str, splits)))}")
            folder = folder / split
        elif split != "train":
            raise DataError(
                f"{named} is saved without splits, so all of it is 'train'; there is no {split!r}"
            )
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        for entry in [*state["_data_files"], *(state.get("_indices_data_files") or ())]:
            check_arrow(DataFile(folder / entry["filename"]))
        return LoadedRows(f"{named} {split}", datasets.load_from_disk(str(folder)))
    except _failures() as error:
        raise DataError(f"{named} cannot be loaded as a saved dataset: {_first_lines(error)}") from error


def _not_found(source: str, revision: str | None, text: str) -> str:
    from tune.utils.hub_access import connect

    hub = connect(kind="dataset")
    # `datasets` drops the hub's own error on the way, so its words tell the two apart.
    if "gated" in text.lower() or "authenticated" in text.lower():
        return hub.explain_gated(source)
    at = f" at revision {revision!r}" if revision else ""
    named = escape_control(source, 200)
    return (
        f"there is no dataset {named!r}{at} on the hub that you may read, and no local file or folder of that "
        "name. A local file is given by its path, such as ./data/train.jsonl; a private dataset needs a token: "
        f"{hub.ways_to_give_a_token}"
    )


def _not_reached(source: str, reason: str) -> str:
    named = escape_control(source, 200)
    return (
        f"{named!r} is no local file or folder, and the Hugging Face hub could not be asked for a dataset of "
        f"that name ({reason}). Without network, give a local json, jsonl, csv or parquet file as "
        "dataset.source"
    )


def _first_lines(error: BaseException) -> str:
    # An error that wraps another says little itself.
    while error.__cause__ is not None and type(error).__name__ == "DatasetGenerationError":
        error = error.__cause__
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {escape_control(words, 400)}" if words else type(error).__name__
