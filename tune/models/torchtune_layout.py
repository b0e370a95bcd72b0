"""torchtune's own files: its names of parameters are ours, with few exceptions."""

from __future__ import annotations

from tune.models.rotary_order import paired_rule
from tune.modules import Layout, WeightRule


def torchtune_layout(hf: Layout, names: dict[str, str] | None = None, *, paired: bool) -> Layout:
    """Return torchtune's layout of a family.

    Args:
        hf: the family's Hugging Face layout, which says what parameters there are.
        names: those that torchtune calls differently, ours to theirs.
        paired: its queries and keys keep the channels that turn together as neighbours.
    """
    rules = []
    for rule in hf.rules:
        theirs = (names or {}).get(rule.ours, rule.ours)
        is_turned = rule.ours.rpartition(".")[0].endswith(("attn.q_proj", "attn.k_proj"))  # biases as well
        rules.append(
            paired_rule(rule.ours, theirs) if paired and is_turned else WeightRule(rule.ours, theirs)
        )
    return Layout("torchtune", tuple(rules), tied_output="output.weight")
