"""How checkpoints of Phi-3, Phi-3.5 and Phi-4 name their weights, and what their config.json says.

Models for long texts have two sets of rotary frequencies, one for texts within the original length and one for longer
texts. Which holds is decided for a whole text, since keys turned by the one do not fit queries turned by the other:
without caches by the largest position of the call, with caches by the length they were set up for. So a text that is
generated beyond the original length has the frequencies of long texts from its first token on, provided its caches
were made long enough; transformers starts with those of short texts and computes all keys anew when it crosses over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tune.checkpoints import ConfigFields
from tune.models.hf_config import finish, layer_range, read_rope, read_sizes, write_rope, write_sizes
from tune.models.hf_layout import hf_layout
from tune.models.torchtune_layout import torchtune_layout
from tune.modules import DecoderConfig, Family, LongRopeScaling

_ORIGINAL_LEN = 4096  # transformers, Phi3Config


def _read_hf_config(content: Mapping[str, Any]) -> DecoderConfig:
    fields = ConfigFields(_with_original_len(content), "config.json")
    sizes = read_sizes(fields, max_seq_len=4096, norm_eps=1e-5)
    rope = read_rope(fields, sizes, partial=True)
    if not isinstance(rope["rope_scaling"], LongRopeScaling | None):
        fields.problem('`rope_scaling` is of another type than "longrope", the only one of this family')
    arguments = {**sizes, **rope}
    arguments["sliding_window"] = fields.optional_integer("sliding_window", None)
    if arguments["sliding_window"] is not None:
        arguments["sliding_layers"] = tuple(layer_range(sizes["num_layers"]))
    fields.expect("hidden_act", "silu")
    for name in ("embd_pdrop", "resid_pdrop"):
        fields.expect(name, 0.0, 0)
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        fields.expect(name, False)
    for name in ("full_attn_mod", "interpolate_factor"):
        fields.expect(name, 1)
    fields.ignore(("original_max_position_embeddings",))
    return finish(fields, arguments)


def _with_original_len(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with the original length where every other family has it, inside the scaling.

    The field beside it comes first, and long scaling went by other names.  # transformers, Phi3Config
    """
    changed = dict(content)
    for name in ("rope_scaling", "rope_parameters"):
        scaling = content.get(name)
        if not isinstance(scaling, dict):
            continue
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind in ("su", "yarn", "longrope"):
            original = content.get("original_max_position_embeddings", _ORIGINAL_LEN)
            changed[name] = {**scaling, "rope_type": "longrope", "original_max_position_embeddings": original}
    return changed


def _write_hf_config(config: DecoderConfig) -> dict[str, Any]:
    content = {
        **write_sizes(config, has_head_dim=False),
        **write_rope(config),
        "hidden_act": "silu",
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "sliding_window": config.sliding_window,
        # transformers' own are Phi-3's, and elsewhere name an ordinary token; the tokenizer knows better.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if isinstance(config.rope_scaling, LongRopeScaling):
        scaling = config.rope_scaling
        # Older versions of transformers take these three fields and no other.
        content["rope_scaling"] = {
            "type": "longrope",
            "short_factor": list(scaling.short_factors),
            "long_factor": list(scaling.long_factors),
        }
        content["original_max_position_embeddings"] = scaling.original_max_seq_len
        usual = usual_magnitude(config.max_seq_len, scaling.original_max_seq_len)
        if not math.isclose(scaling.magnitude, usual, rel_tol=1e-9):
            content["rope_scaling"]["attention_factor"] = scaling.magnitude
    return content


def usual_magnitude(max_seq_len: int, original_max_seq_len: int) -> float:
    """Return the factor on cosines and sines where a file names none.  # arXiv:2404.14219, config.json of Phi-3"""
    factor = max_seq_len / original_max_seq_len
    if factor <= 1 or original_max_seq_len < 2:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original_max_seq_len))


_HF = hf_layout(
    {
        "attn.q_proj.weight": "self_attn.qkv_proj.weight",
        "attn.k_proj.weight": "self_attn.qkv_proj.weight",
        "attn.v_proj.weight": "self_attn.qkv_proj.weight",
        "mlp.w1.weight": "mlp.gate_up_proj.weight",
        "mlp.w3.weight": "mlp.gate_up_proj.weight",
    }
)

PHI3 = Family(
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    hf=_HF,
    # torchtune, models/phi3/_convert_weights.py
    torchtune=torchtune_layout(_HF, paired=False),
    read_hf_config=_read_hf_config,
    write_hf_config=_write_hf_config,
)
