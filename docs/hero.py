"""Fine-tune without a recipe: `python docs/hero.py MODEL_DIR DATA_FILE`. The parts are yours to put together."""

import sys

import torch

from tune import data, datasets, models, tokenizers
from tune.checkpoints import save_model
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum

model, tokenizer = models.from_checkpoint(sys.argv[1]).train(), tokenizers.from_checkpoint(sys.argv[1])
examples = datasets.instruct_dataset(tokenizer, source=sys.argv[2])
loader = torch.utils.data.DataLoader(examples, 8, shuffle=True, collate_fn=data.padded_collate_sft)
loss_fn, optimizer = LinearCrossEntropyLoss(), torch.optim.AdamW(model.parameters(), lr=1e-3)
for step, batch in enumerate(loader):
    labels = data.shift_labels(batch["labels"])  # [b, s]
    loss = loss_sum(loss_fn, model, batch["tokens"], labels) / (labels != -100).sum()
    loss.backward(), optimizer.step(), optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.3f}")
save_model(model, "hero_model", tokenizer=tokenizer)
