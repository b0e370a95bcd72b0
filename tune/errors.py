"""The errors a user can meet, drawn as a tree.

TuneError                 anything we can explain: printed as one block, never as a traceback
├── ConfigError           the configuration is wrong (exit code 2)
│   └── ParamsError       (tune.config.params) problems of one params object
├── CheckpointError       weights or a saved step cannot be read, written or matched
├── DataError             a dataset cannot be read, recognised or learnt from
├── TokenizerError        a tokenizer cannot be read, or cannot do what is asked
├── GenerationError       a prompt cannot be continued
├── HubError              a model cannot be fetched from the hub, or sent to it
└── TrainingError         the run cannot go on (non-finite loss, unsupported environment)
"""

from __future__ import annotations

from collections.abc import Iterator


class TuneError(Exception):
    """An explained failure. The message states the fact, the numbers involved and the fix."""

    exit_code = 1


class ConfigError(TuneError):
    """The configuration cannot be used; nothing has been started."""

    exit_code = 2


class CheckpointError(TuneError):
    """Weights or a saved step cannot be read, written or matched to the model."""


class DataError(TuneError):
    """A dataset cannot be read, its format is not recognised, or nothing in it can be learnt."""


class TokenizerError(TuneError):
    """A tokenizer file cannot be read, or the tokenizer cannot do what is asked of it."""


class GenerationError(TuneError):
    """A prompt cannot be continued as asked."""


class HubError(TuneError):
    """A model cannot be fetched from the hub, or sent to it."""


class TrainingError(TuneError):
    """A run cannot start here or cannot go on."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, what it was raised from or while handling, and so on to the first; each once."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        yield link
        seen.append(link)
        link = link.__cause__ or link.__context__


def first_line(error: BaseException) -> str:
    """Return what an error of a library says first, without its full stop, or its kind where it says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".:")
