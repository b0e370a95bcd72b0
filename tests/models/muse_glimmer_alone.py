"""Muse-Glimmer's text model with its output matrix, for which transformers has no class: it has the larger model alone.

Its trunk is transformers' own; test_muse_glimmer.py compares the whole with the larger model.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, MuseGlimmerTextConfig, MuseGlimmerTextModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.muse_glimmer.modeling_muse_glimmer import MuseGlimmerPreTrainedModel


class MuseGlimmerForCausalLM(MuseGlimmerPreTrainedModel, GenerationMixin):
    config_class = MuseGlimmerTextConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MuseGlimmerTextConfig) -> None:
        super().__init__(config)
        self.model = MuseGlimmerTextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, **others: Any) -> CausalLMOutputWithPast:
        kept = others.pop("logits_to_keep", 0)
        others = {name: value for name, value in others.items() if name not in ("labels", "return_dict")}
        outputs = self.model(input_ids=input_ids, **others)
        logits = self.lm_head(outputs.last_hidden_state[:, -kept:]) * self.config.output_multiplier
        cap = self.config.final_logit_softcapping
        return CausalLMOutputWithPast(
            logits=(logits / cap).tanh() * cap, past_key_values=outputs.past_key_values
        )


AutoModelForCausalLM.register(MuseGlimmerTextConfig, MuseGlimmerForCausalLM, exist_ok=True)
