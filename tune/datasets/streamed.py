"""Data that is never read whole: a look at its beginning, and a stream of all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch.utils.data import Dataset

from tune.config.component import Component
from tune.config.slots import SHUFFLE_BUFFER, STREAMING
from tune.data import DataReport
from tune.data.files import describe_files
from tune.data.sources import streaming
from tune.data.stream import MixedStream, RowStream
from tune.datasets.packed import PackedDataset, ReportingDataset
from tune.datasets.sampling import Sample, sampling
from tune.datasets.tokenizing import count_tokenizing_processes, tokenize_rows
from tune.errors import ConfigError

DEFAULT_BUFFER = 10_000
# Examples that a report of a stream is made of: a template may take a tenth of a second for each.
_NUM_SAMPLED = 200


class StreamedDataset(Dataset[dict[str, list[Any]]]):
    """What a run reads as it goes; by number it gives the first examples alone, which its report is about.

    Args:
        sample: the first examples.
        streams: of the sources; each process gets its own part of them.
        weights: shares of their examples.
        num_proc: processes that tokenize.
        report: what is known of them.

    Attributes:
        sample, streams, weights, num_proc: as given.
    """

    def __init__(
        self,
        sample: ReportingDataset,
        streams: Sequence[RowStream],
        weights: Sequence[float],
        num_proc: int,
        report: DataReport,
    ) -> None:
        self.sample = sample
        self.streams = list(streams)
        self.weights = list(weights)
        self.num_proc = num_proc
        self._report = report

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, index: int) -> dict[str, list[Any]]:
        return self.sample[index]

    def length(self, index: int) -> int:
        """Return the number of tokens of one of the first examples without making it."""
        return self.sample.length(index)

    def report(self) -> DataReport:
        """Return the counts of the first examples, and what cannot be known of the others."""
        return self._report

    def render_prompt(self, text: str) -> str | list[int]:
        """Return what the model reads when a user says `text`."""
        return self.sample.render_prompt(text)

    def stream(self, shuffle: bool, seed: int, rank: int, world_size: int) -> MixedStream:
        """Return the endless examples of this process; arguments are those of `RowStream`."""
        num_proc = max(self.num_proc // len(self.streams), 1)
        streams = [
            replace(
                stream,
                shuffle_buffer=stream.shuffle_buffer if shuffle else 0,
                seed=seed,
                rank=rank,
                world_size=world_size,
                tokenize=partial(tokenize_rows, job=stream.job, num_proc=num_proc),
            )
            for stream in self.streams
        ]
        return MixedStream(streams, self.weights)

    def describe_sources(self) -> str:
        """Return what must be the same for a place in the stream to be the same: files, and settings."""
        return "; ".join(
            f"{stream.source} ({describe_files(stream.source.local_files())}) x {weight:g}, buffer of "
            f"{stream.shuffle_buffer}, packed into {stream.capacity}, bad rows "
            f"{'drop' if stream.drops_bad_rows else 'error'}"
            for stream, weight in zip(self.streams, self.weights, strict=True)
        )


def is_streamed(component: Component) -> bool:
    """Tell whether a dataset of ours is asked for as a stream."""
    return component.path.startswith("tune.") and component.kwargs.get(STREAMING) is True


def build_streamed(
    component: Component, weight: float, build: Callable[[Component], ReportingDataset]
) -> StreamedDataset:
    """Return a dataset of which no more than the beginning is read now.

    Args:
        component: builds the dataset.
        weight: its share among others.
        build: makes a dataset of a component without the settings of the recipe.

    Raises:
        ConfigError: it has no source that can be read as it goes.
        DataError: the beginning cannot be read or learnt from.
    """
    sample = Sample(_NUM_SAMPLED)
    with sampling(sample), streaming():
        dataset = build(component)
    sources = [rows.source for rows, _ in sample.read]
    if len(sources) != 1 or sources[0] is None:
        raise ConfigError(
            f"dataset {component.path} cannot be streamed: it is not made of the rows of one source"
        )
    rows, job = sample.read[0]
    report = dataset.report()
    if job.limit is None:
        raise ConfigError(
            "streamed data needs to know how long a sequence may be, for nobody knows the longest before all are read: "
            "set dataset.max_seq_len or tokenizer.max_seq_len"
        )
    num_proc = count_tokenizing_processes(shares_host=True)
    capacity = dataset.capacity if isinstance(dataset, PackedDataset) else None
    buffer = component.kwargs.get(SHUFFLE_BUFFER, DEFAULT_BUFFER)
    stream = RowStream(sources[0], job, rows.on_bad_rows == "drop", capacity, buffer)
    if sample.is_partial:
        report = replace(
            report,
            is_partial=True,
            remarks=[
                *report.remarks,
                f"streamed: only the first {report.num_rows:,} rows were looked at; how many there are, what is wrong "
                f"with others and how long they are shows while they are read. Up to {buffer:,} rows are shuffled "
                "together",
            ],
        )
    return StreamedDataset(dataset, [stream], [weight], num_proc, report)


def mix_streams(datasets: Sequence[StreamedDataset], joined: ReportingDataset) -> StreamedDataset:
    """Return several streams as one, in the shares of their weights.

    Args:
        datasets: the streams, packed alike.
        joined: their first examples.
    """
    streams = [stream for dataset in datasets for stream in dataset.streams]
    weights = [weight for dataset in datasets for weight in dataset.weights]
    shares = ", ".join(
        f"{stream.source}: {weight / sum(weights):.1%}"
        for stream, weight in zip(streams, weights, strict=True)
    )
    report = joined.report()
    report = replace(report, remarks=[*report.remarks, f"the examples are mixed: {shares}"])
    return StreamedDataset(joined, streams, weights, datasets[0].num_proc, report)
