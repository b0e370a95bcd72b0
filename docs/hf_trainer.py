"""Let the Trainer of transformers train a model of tune: `python docs/hf_trainer.py MODEL_DIR DATA_FILE`."""

import sys

import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from tune import data, datasets, models, tokenizers
from tune.checkpoints import save_model


class WithLoss(torch.nn.Module):  # the Trainer asks a model for its loss
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, labels, **_):  # [b, s] each
        return {"loss": cross_entropy(self.model(tokens).flatten(0, 1), data.shift_labels(labels).flatten())}


model, tokenizer = models.from_checkpoint(sys.argv[1]).train(), tokenizers.from_checkpoint(sys.argv[1])
examples = datasets.instruct_dataset(tokenizer, source=sys.argv[2])
how = TrainingArguments("hf_out", max_steps=20, learning_rate=1e-3, save_strategy="no", report_to="none")
Trainer(WithLoss(model), how, data.padded_collate_sft, examples).train()
save_model(model, "hf_model", tokenizer=tokenizer)
