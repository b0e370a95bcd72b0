"""What a dataset holds after reading: how much is learnt, cut, or lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tune.utils.escape import escape_control

# Places of dropped rows that a report names.
_MAX_PLACES = 5
_MAX_REASON = 1000
_MAX_FILES = 20
# Names of unused columns that are counted each by itself.
_MAX_UNUSED = 30
_FURTHER = "further columns and keys"


@dataclass
class DataReport:
    """Counts taken while a dataset was read; `str()` is the text shown before training.

    Attributes:
        source: where the rows came from.
        format: how the columns were read, such as "question -> answer".
        template: name of the prompt template.
        max_seq_len: tokens after which examples were cut; None for no limit.
        num_rows: rows read.
        is_partial: whether there are rows that were not read, so that all counts are of the first ones.
        num_examples: examples kept (after packing: documents).
        num_sides: conversations in them, where each example holds several (a pair has two), else 0.
        num_packs: sequences the examples were packed into, 0 where not packed.
        num_tokens: tokens kept.
        num_target_tokens: tokens learnt.
        num_weighted_tokens: those of them whose loss is multiplied by another weight than 1.
        num_truncated: examples that were longer than `max_seq_len`, the lost ones among them.
        num_tokens_cut: tokens beyond `max_seq_len`.
        num_long_dropped: examples left out because they were longer (`on_too_long=drop`).
        num_split: examples that became several because they were longer (`on_too_long=split`).
        num_lost: examples left out because the cut took all there was to learn.
        num_dropped: rows left out because they are malformed or hold nothing to learn.
        num_unlearnt: rows left out because all their answers have weight 0, by flags or by settings.
        num_empty_answers: examples kept whose answer is empty.
        longest: tokens of the longest example, or side of one, before any cut.
        dropped: the first dropped rows, with place and reason.
        unused: names of columns and of keys of messages that nothing uses, each with how often they say something.
        notes: what was done to rows, in words, each with how often.
        files: files of a folder that were read, by name.
        files_left_out: data files in it that were not.
        remarks: what else is to be said, a sentence each: what was set aside, how datasets are mixed.
    """

    source: str = ""
    format: str = ""
    template: str = ""
    max_seq_len: int | None = None
    num_rows: int = 0
    is_partial: bool = False
    num_examples: int = 0
    num_sides: int = 0
    num_packs: int = 0
    num_tokens: int = 0
    num_target_tokens: int = 0
    num_weighted_tokens: int = 0
    num_truncated: int = 0
    num_tokens_cut: int = 0
    num_long_dropped: int = 0
    num_split: int = 0
    num_lost: int = 0
    num_dropped: int = 0
    num_unlearnt: int = 0
    num_empty_answers: int = 0
    longest: int = 0
    dropped: list[str] = field(default_factory=list)
    unused: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    files_left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def share_trained(self) -> float:
        """Share of the tokens that are learnt, 0 to 1."""
        return self.num_target_tokens / self.num_tokens if self.num_tokens else 0.0

    @property
    def longest_kept(self) -> int:
        """Tokens of the longest example after any cut; as many as there may be, where not all rows were read."""
        if self.max_seq_len is None:
            return self.longest
        return self.max_seq_len if self.is_partial else min(self.longest, self.max_seq_len)

    def note_dropped(self, place: str, reason: str) -> None:
        """Count a row that is left out, and remembers the first few."""
        self.num_dropped += 1
        if len(self.dropped) < _MAX_PLACES:
            self.dropped.append(f"{place}: {escape_control(reason, _MAX_REASON)}")

    def add(self, part: DataReport) -> None:
        """Add the counts of a part of the rows."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(part, name))
        self.longest = max(self.longest, part.longest)
        self.note_row(vars(part))

    def note_row(self, read: Mapping[str, Any]) -> None:
        """Count what a transform says that it did not use of a row, and what it did to it."""
        for name, times in read.get("unused", {}).items():
            name = name if name in self.unused or len(self.unused) < _MAX_UNUSED else _FURTHER
            self.unused[name] = self.unused.get(name, 0) + times
        for what, times in read.get("notes", {}).items():
            self.notes[what] = self.notes.get(what, 0) + times

    def to_dict(self) -> dict[str, Any]:
        """Return all counts, with `share_trained`, as plain values."""
        return asdict(self) | {"share_trained": self.share_trained}

    def warnings(self) -> list[str]:
        """Return a sentence for each thing that was lost, [] where all is well."""
        found = []
        if self.num_truncated:
            kept = self.num_truncated - self.num_lost
            text = (
                f"{self.num_truncated:,} of {self.num_truncated + self._num_whole():,} examples are longer than "
                f"max_seq_len={self.max_seq_len} (longest {self.longest:,} tokens)"
            )
            fates = []
            if kept:
                fates.append(f"{kept:,} are cut and end without EOS")
            if self.num_lost:
                fates.append(f"{self.num_lost:,} are left out, their answer lies beyond the cut")
            found.append(f"{text}: {'; '.join(fates)}. Raise max_seq_len if the model allows")
        for count, fate in (
            (self.num_long_dropped, "are left out (on_too_long=drop)"),
            (self.num_split, "are split into several, with nothing lost (on_too_long=split)"),
        ):
            if count:
                found.append(
                    f"{count:,} examples are longer than max_seq_len={self.max_seq_len} (longest {self.longest:,} "
                    f"tokens) and {fate}"
                )
        if self.num_dropped:
            listed = "".join(f"\n    {line}" for line in self.dropped)
            more = f"\n    and {self.num_dropped - len(self.dropped):,} more" if self._has_more() else ""
            found.append(f"{self.num_dropped:,} of {self.num_rows:,} rows are left out:{listed}{more}")
        if self.num_empty_answers:
            found.append(
                f"{self.num_empty_answers:,} examples have an empty answer: only their prompt is learnt"
            )
        found += [f"{what}: {times:,}" for what, times in sorted(self.notes.items())]
        return found

    def __str__(self) -> str:
        num_rows = self.num_sides or self.num_examples
        length = f"{self.num_tokens / num_rows:,.0f}" if num_rows else "0"
        how = ", ".join(
            part for part in (self.format, f"template {self.template}" * bool(self.template)) if part
        )
        lines = [
            f"{self.source}{f' ({how})' if how else ''}",
            f"  {self.num_examples:,} examples, {self.num_tokens:,} tokens (mean {length}, longest {self.longest:,}"
            f"{' of each side' * bool(self.num_sides)}), {self.share_trained:.1%} of them trained on"
            f"{self._of_weight()}",
        ]
        if self.num_unlearnt:
            lines.append(
                f"  {self.num_unlearnt:,} of {self.num_rows:,} rows are left out, no answer to learn: weight 0 "
                "(by flags of their messages, or by train_on)"
            )
        if self.files:
            left_out = f"; not read: {_list(self.files_left_out)}" if self.files_left_out else ""
            lines.append(f"  files read: {_list(self.files)}{left_out}")
        if self.unused:
            lines.append(f"  not used: {', '.join(map(_times, sorted(self.unused.items())))}")
        if self.num_packs:
            fill = self.num_tokens / (self.num_packs * self.max_seq_len) if self.max_seq_len else 0.0
            lines.append(f"  packed into {self.num_packs:,} sequences of {self.max_seq_len}, {fill:.1%} full")
        lines += [f"  {remark}" for remark in self.remarks]
        return "\n".join([*lines, *(f"  warning: {text}" for text in self.warnings())])

    def _of_weight(self) -> str:
        if not self.num_weighted_tokens:
            return ""
        share = self.num_weighted_tokens / self.num_target_tokens
        return f" ({self.num_weighted_tokens:,} of these, {share:.1%}, with a weight other than 1)"

    def _num_whole(self) -> int:
        return self.num_examples + self.num_lost - self.num_truncated

    def _has_more(self) -> bool:
        return self.num_dropped > len(self.dropped)


_COUNTS = tuple(name for name in DataReport.__dataclass_fields__ if name.startswith("num_"))


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_FILES]) + (
        f" and {len(names) - _MAX_FILES:,} more" * (len(names) > _MAX_FILES)
    )


def _times(item: tuple[str, int]) -> str:
    return f"{item[0]} ({item[1]:,} {'time' if item[1] == 1 else 'times'})"


def merge_reports(reports: Sequence[DataReport]) -> DataReport:
    """Return one report over several datasets."""
    counts = {name: sum(getattr(report, name) for report in reports) for name in _COUNTS}
    merged = DataReport()
    for report in reports:
        merged.note_row({"unused": report.unused, "notes": report.notes})
    limits = [report.max_seq_len for report in reports if report.max_seq_len is not None]
    return DataReport(
        source=" + ".join(report.source for report in reports),
        format="; ".join(dict.fromkeys(report.format for report in reports if report.format)),
        template="; ".join(dict.fromkeys(report.template for report in reports if report.template)),
        max_seq_len=min(limits) if limits else None,
        longest=max(report.longest for report in reports),
        is_partial=any(report.is_partial for report in reports),
        dropped=[line for report in reports for line in report.dropped][:_MAX_PLACES],
        unused=merged.unused,
        notes=merged.notes,
        files=[name for report in reports for name in report.files],
        files_left_out=[name for report in reports for name in report.files_left_out],
        remarks=[f"{report.source}: {remark}" for report in reports for remark in report.remarks],
        **counts,
    )
