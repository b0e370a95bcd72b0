"""Let accelerate place and wrap a model of tune: `accelerate launch docs/hf_accelerate.py MODEL_DIR DATA_FILE`."""

import sys

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy

from tune import data, datasets, models, tokenizers
from tune.checkpoints import save_model

accelerator = Accelerator()
model, tokenizer = models.from_checkpoint(sys.argv[1]).train(), tokenizers.from_checkpoint(sys.argv[1])
examples = datasets.instruct_dataset(tokenizer, source=sys.argv[2])
loader = torch.utils.data.DataLoader(examples, 8, shuffle=True, collate_fn=data.padded_collate_sft)
model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loader)
for batch in loader:
    logits, labels = model(batch["tokens"]), data.shift_labels(batch["labels"])  # [b, s, v], [b, s]
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
    accelerator.backward(loss)
    optimizer.step(), optimizer.zero_grad()
accelerator.print(f"loss {loss.item():.3f}")
save_model(accelerator.unwrap_model(model), "hf_model", tokenizer=tokenizer)
