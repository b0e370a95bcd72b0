"""Dropout on what a block adds to the residual stream."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tune.errors import ConfigError
from tune.modules import DecoderConfig, TransformerDecoder

CONFIG = DecoderConfig(31, 2, 2, 1, 20, 10, 22, 96)


def test_it_drops_in_training_alone_and_as_often_as_it_says() -> None:
    torch.manual_seed(2)
    model = TransformerDecoder(replace(CONFIG, residual_dropout=0.75))
    plain = TransformerDecoder(CONFIG)
    plain.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 31, (3, 17))
    with torch.no_grad():
        assert torch.equal(model.eval()(tokens), plain.eval()(tokens))
        first, second = (model.train()(tokens) for _ in range(2))
        assert not torch.allclose(first, second, atol=1e-3)
        x, h = torch.zeros(50, 40), torch.ones(50, 40)
        added = model.layers[0]._add(x, h)  # type: ignore[operator]
    assert set(added.unique().tolist()) == {0.0, 4.0}
    assert abs((added == 0).float().mean() - 0.75) < 0.05


def test_a_share_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match=r"residual_dropout is 1\.0"):
        replace(CONFIG, residual_dropout=1.0)
