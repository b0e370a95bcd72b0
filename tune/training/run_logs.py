"""The files and services that a run writes to as it goes: on the first process, as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tune.config.component import Component
from tune.config.instantiate import instantiate_offering
from tune.training.metric_logging import FileLogger, JSONLLogger, MetricLogger, Scalar

__all__ = ["LoggerGroup", "RunLogs"]


class LoggerGroup:
    """Several loggers as one; on all processes but the first, none.

    Args:
        make: makes the loggers; not called where they are not enabled.
        enabled: whether this is the process that logs.
    """

    def __init__(self, make: Callable[[], Sequence[MetricLogger]], *, enabled: bool = True) -> None:
        self._loggers = make() if enabled else ()

    def log(self, name: str, value: Scalar, step: int) -> None:
        """Write one metric of optimizer step `step`."""
        self.log_dict({name: value}, step)

    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        """Write the metrics of optimizer step `step`."""
        for logger in self._loggers:
            logger.log_dict(payload, step)

    def rewind(self, step: int) -> None:
        """Forget what is later than `step`."""
        for logger in self._loggers:
            logger.rewind(step)

    def flush(self) -> None:
        """Return once the files' lines are on the disk: a step saved after that never knows more than they do."""
        for logger in self._loggers:
            if isinstance(logger, FileLogger):
                logger.flush()

    def close(self) -> None:
        """Close every logger."""
        for logger in self._loggers:
            logger.close()


class RunLogs:
    """What a run writes as it goes, line by line.

    Attributes:
        metrics: metrics.jsonl and the logger that a config describes, as one.
        samples: samples.jsonl, where answers to sample prompts go.

    Args:
        component: the config's logger: its class and arguments.
        output_dir: where all of them write, unless the component says otherwise.
        overwrite: forget what an earlier run left.
        enabled: whether this is the process that logs.
    """

    def __init__(
        self, component: Component, output_dir: Path, *, overwrite: bool, enabled: bool = True
    ) -> None:
        self.metrics = LoggerGroup(
            lambda: [
                JSONLLogger(str(output_dir), overwrite=overwrite),
                instantiate_offering(component, {"log_dir": str(output_dir)}),
            ],
            enabled=enabled,
        )
        self.samples = LoggerGroup(
            lambda: [JSONLLogger(str(output_dir), "samples.jsonl", overwrite)], enabled=enabled
        )

    def rewind(self, step: int) -> None:
        """Forget what is later than `step`."""
        self.metrics.rewind(step)
        self.samples.rewind(step)

    def flush(self) -> None:
        """Return once every line is on the disk: a step saved after that never knows more than they do."""
        self.metrics.flush()
        self.samples.flush()

    def close(self) -> None:
        """Close every logger."""
        self.metrics.close()
        self.samples.close()
