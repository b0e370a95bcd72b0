"""The two orders in which files keep the channels that turn together: as halves of a head, or as neighbours."""

from __future__ import annotations

from torch import Tensor

from tune.modules import DecoderConfig, WeightRule


def halves_from_pairs(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder each head's rows from pairs (2i, 2i + 1) to halves (i, i + h_d / 2), as our rotation expects."""
    pairs = weight.view(num_heads, weight.shape[0] // num_heads // 2, 2, -1)  # [n, h_d / 2, 2, d]
    return pairs.transpose(1, 2).reshape(weight.shape)


def pairs_from_halves(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder each head's rows from halves to pairs, the inverse of `halves_from_pairs`."""
    halves = weight.view(num_heads, 2, weight.shape[0] // num_heads // 2, -1)  # [n, 2, h_d / 2, d]
    return halves.transpose(1, 2).reshape(weight.shape)


def paired_rule(ours: str, theirs: str) -> WeightRule:
    """Return the rule of a query or key matrix, or of its bias, that a file keeps in pairs."""
    is_query = "q_proj" in ours

    def num_heads(config: DecoderConfig) -> int:
        return config.num_heads if is_query else config.num_kv_heads

    return WeightRule(
        ours,
        theirs,
        to_ours=lambda weight, config: halves_from_pairs(weight, num_heads(config)),
        to_theirs=lambda weight, config: pairs_from_halves(weight, num_heads(config)),
    )
