"""Optimizers and loggers by name, for programs without a config."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tune.errors import ConfigError
from tune.training import get_metric_logger, get_optimizer
from tune.training.metric_logging import DiskLogger


def test_an_optimizer_by_its_name_trains_the_weights() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    optimizer = get_optimizer("SGD", [weight], lr=0.5)
    weight.sum().backward()
    optimizer.step()
    assert weight.tolist() == [1.5, 2.5]


def test_a_logger_by_its_short_name_writes(tmp_path: Path) -> None:
    logger = get_metric_logger("disk", log_dir=str(tmp_path))
    assert isinstance(logger, DiskLogger)
    logger.log_dict({"loss": 1.25}, 7)
    logger.close()
    assert "1.25" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [("AdmaW", "did you mean AdamW"), ("torch.nn.Linear", "optimizer"), ("os.system", "trusted")],
)
def test_what_is_no_optimizer_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_optimizer(name, [torch.nn.Parameter(torch.zeros(2))])


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(ConfigError, match="weight_decy"):
        get_optimizer("AdamW", [torch.nn.Parameter(torch.zeros(2))], weight_decy=0.1)
