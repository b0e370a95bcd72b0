"""Full fine-tuning: every weight of a model is trained on examples of your own.

    tune run full_finetune --config llama2/7B_full model_checkpoint=DIR dataset.source=my.jsonl

Copy this file (`tune cp full_finetune mine.py`), change what you like, and run it: `tune run ./mine.py ...`.
It is read from top to bottom: `setup`, `train`, and `batch_loss`, which says what is learnt (docs/own_recipe.md).
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler

import tune.config
from tune import training
from tune.config import fixed_on_resume, instantiate
from tune.data import shift_labels, shift_weights
from tune.datasets import build_splits
from tune.evaluation import AnswerScores
from tune.generation import generate_text, generate_texts
from tune.modules.loss import loss_sum
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.report import write_report
from tune.utils import get_device, get_logger


class FullFinetuneRecipe:
    """Fine-tunes all weights, in one process or many, on CPUs or GPUs.

    Each optimizer step divides the summed loss of all its micro-batches by their number of target tokens, so the
    gradient does not depend on how the step was cut up. Saved steps resume bit for bit on the same machine.
    """

    def __init__(self, params: FullFinetuneParams) -> None:
        self.params = params
        get_logger(params.log_level)
        self.exit_code, self.exit_stack = 0, ExitStack()  # what cleanup() closes, the last one first
        self.memory_plan: training.MemoryPlan | None = None

    def setup(self) -> None:
        """Build everything `train` uses. Cheap checks come first, the weights late, the saved state last."""
        params = self.params
        # 1. This process, the others, and the place to write to, before any work that could not be written.
        training.make_deterministic(params.deterministic)
        self.device = get_device(params.device)
        training.prefer_attention_kernels(self.device)
        self.mesh = training.init_mesh(self.device, params.process_choices())
        self.exit_stack.callback(self.mesh.close)
        self.checkpointer = instantiate(params.checkpointer, defaults={"output_dir": params.output_dir})
        self.checkpoints = training.Checkpoints(
            params.output_dir, self.mesh, params.keep_last_n_checkpoints, params.enable_async_checkpointing
        )
        self.exit_stack.callback(self.checkpoints.close)
        self.checkpoints.find(params.resume_from_checkpoint, self.checkpointer)

        # 2. Precision and seed: everything after this may draw random numbers, the same on every process.
        self.precision = training.plan_precision(params.dtype, params.param_dtype, self.device)
        self.state = state = training.begin_state(params.seed, self.checkpoints.saved, self.mesh)

        # 3. Tokenizer, data and loss, in seconds: a mistake there shows before gigabytes of weights are read.
        self._setup_data()
        self.loss_fn = training.build_loss(params.loss, self.dataset, self.dataset_val)

        # 4. Model: without memory first, then weight by weight, so the host never holds a second copy.
        self._setup_model()
        self.load_checkpoint()

        # 5. What changes the weights. The schedule needs the number of steps, which the data gave.
        self.gradients = training.GradientSync(self.model, self.mesh)
        self.optimizer = training.build_optimizer(
            params.optimizer, self.model, world_size=self.mesh.world_size, **params.optimizer_settings()
        )
        self.lr_scheduler = training.build_lr_scheduler(params.lr_scheduler, self.optimizer, state.num_steps)
        self.scaler = GradScaler(self.device.type, enabled=self.precision.needs_loss_scaling)
        self.guard = training.StepGuard(params.on_non_finite, self.scaler, state, self.checkpoints)
        offload = params.enable_activation_offloading
        self.offloading = training.activation_offloading(self.model, self.device, offload)

        # 6. What watches. Then the saved state goes into what now stands, last of all, since building has drawn random
        #    numbers; and a file says exactly what is running: not before, since a resume may be refused here.
        self._setup_monitor()
        state.seed_next_step()
        self.checkpoints.restore(state, self.model, self.optimizer, params.allow_changes_on_resume)
        self.monitor.rewind(state.step)
        training.write_resolved_config(params, self.checkpoints, seed=state.seed)
        training.write_preview(self.dataset, self.tokenizer, self.checkpoints)

    def _setup_data(self) -> None:
        params, state = self.params, self.state
        self.model_dir: Path | None = self.checkpoints.model_dir or self.checkpointer.find_model_dir()
        tokenizer_dir = self.checkpoints.copy_tokenizer() or self.model_dir
        self.tokenizer = instantiate(params.tokenizer, defaults={"checkpoint_dir": str(tokenizer_dir or "")})
        build_loader = partial(
            training.build_loader,
            collate_fn=params.collate_fn,
            padding_idx=self.tokenizer.pad_id,
            seed=state.seed,
            mesh=self.mesh,
            num_workers=params.num_workers,
        )
        data = params.dataset, params.dataset_val, params.val_split, params.mix_until
        how: Any = params.data_settings()
        self.dataset, self.dataset_val = build_splits(*data, self.tokenizer, state.seed, **how)
        self.loader: Any = build_loader(self.dataset, batch_size=params.batch_size, shuffle=params.shuffle)
        state.plan_steps(self.loader, params.epochs, **params.step_settings())
        if self.dataset_val:
            batch_size_val = params.batch_size_val or params.batch_size
            self.loader_val = build_loader(self.dataset_val, batch_size=batch_size_val, shuffle=False)

    def _setup_model(self) -> None:
        params = self.params
        with torch.device("meta"):
            model = instantiate(params.model, defaults={"checkpoint_dir": str(self.model_dir or "")})
        self.model = model.to(self.precision.param_dtype).train()
        training.fit_vocabulary(training.freeze(model, params.freeze), self.tokenizer, self.dataset.report())
        planned = training.PlannedRun(
            model, self.loss_fn, self.precision, shard_dim=self.mesh.shard_dim, **params.memory_settings()
        )
        self.memory_plan = training.plan_memory(planned, self.dataset.report(), self.mesh)
        self.memory_plan.log()
        # Recomputation first, so that what is compiled includes it; then each process gets room for its part.
        training.checkpoint_activations(model.layers[: self.memory_plan.num_recomputed])
        if training.should_compile(params.compile, self.device):
            training.compile_blocks(model.layers)
        for notice in params.notices(self.mesh.shards):
            get_logger().info(notice)
        if self.mesh.shards:
            training.shard_model(model, self.mesh, self.precision.compute_dtype, **params.shard_settings())

    def load_checkpoint(self) -> None:
        """Fill the model: from the checkpoint, from the saved step that is resumed, or with random weights."""
        if self.model_dir:
            self.checkpointer.load_into(self.model, self.model_dir, device=self.device)
        elif self.params.train_from_scratch:
            if not self.mesh.shards:
                self.model.to_empty(device=self.device)
            self.model.reset_parameters()

    def _setup_monitor(self) -> None:
        params, state = self.params, self.state
        self.monitor = training.Monitor(
            self.checkpoints, self.model, self.precision, self.memory_plan, params.log_peak_memory_stats
        )
        self.exit_stack.callback(self.monitor.close)
        self.monitor.open(params.metric_logger, params.profiler, write_report)
        asked = self.dataset_val, self.tokenizer, partial(generate_texts, self.model, self.tokenizer)
        self.monitor.answers = AnswerScores(*asked, **params.eval_settings())
        repeatability = training.describe_repeatability(params.seed, params.optimizer, self.mesh)
        self.monitor.announce(state, params.batch_size, params.gradient_accumulation_steps, repeatability)
        # Saved with each step and restored on resume, beside the counters, the weights and the optimizer.
        state.track(sampler=self.loader.sampler, scaler=self.scaler, spikes=self.monitor.spikes)
        state.track(lr_scheduler=self.lr_scheduler)
        state.fingerprint = training.fingerprint_run(
            fixed_on_resume(params), state, self.model, self.dataset, self.mesh, __file__
        )

    def train(self) -> None:
        """Run the loop to its end, or to the request to stop; `exit_code` then says which."""
        params, state = self.params, self.state
        if state.step == 0:
            self.monitor.sample(state.step, params.sample_prompts, self._answer)
        with training.StopRequest(self.mesh) as stop, self.checkpoints, self.monitor.watching(state):
            for epoch in range(state.epoch, state.num_epochs):
                state.begin_epoch(epoch)
                self.loader.sampler.set_epoch(epoch)
                windows = training.group_micro_batches(self.loader, params.gradient_accumulation_steps)
                for micro_batches in state.take_steps(windows):
                    state.begin_step()
                    with self.guard.studying(self.model, micro_batches, self._forward, self.save_checkpoint):
                        loss, grad_norm = self.train_step(micro_batches)

                    # From here on everything describes the finished step. A request to stop makes it the last one.
                    self.loader.sampler.advance(len(micro_batches) * params.batch_size)
                    stopping = stop.agreed()
                    metrics: dict[str, Any] = {}
                    due = state.is_due(params.log_every_n_steps, otherwise=True)
                    if due or stopping:
                        lr = training.get_lr(self.optimizer)
                        metrics = self.monitor.measure(state, loss, grad_norm, lr, due)
                    self.lr_scheduler.step()
                    if state.is_due(params.run_val_every_n_steps, otherwise=state.epoch_ends):
                        metrics |= self.validate()
                    self.monitor.log(state, metrics)
                    if state.is_due(params.generate_every_n_steps):
                        self.monitor.sample(state.step, params.sample_prompts, self._answer)
                    state.seed_next_step()
                    ends = stopping or (state.epoch_ends and params.save_every_epoch)
                    if ends or state.is_due(params.save_every_n_steps):
                        self.save_checkpoint()
                    if stopping:
                        self.exit_code = stop.exit_code
                        return

    def train_step(self, micro_batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor | None]:
        """Take one optimizer step; return its loss and the norm of its gradient, still on the device."""
        # 1. Gradients add up over micro-batches, and in the last backward pass over processes. The divisor is the
        #    number of targets that the first micro-batches let expect: the very number where there are no others.
        total, num_targets, divisor = torch.zeros((), device=self.device), 0, 0
        for batch, is_last_batch in training.mark_last(micro_batches):
            with self.gradients.micro_step(is_last_batch):
                batch_total, batch_targets = self._forward(batch)
                total += batch_total.detach()
                num_targets += batch_targets
                divisor = divisor or max(self.mesh.sum(batch_targets) * len(micro_batches), 1)
                if self.params.optimizer_in_bwd:  # the next line already steps
                    self.guard.allows(self.mesh.sum_(total / divisor))
                self.scaler.scale(batch_total / divisor).backward()  # type: ignore[no-untyped-call]
        counts = training.count_tokens(micro_batches, self.tokenizer.pad_id, num_targets, self.mesh)
        num_targets = max(counts.num_targets, 1)
        loss, grad_norm = self.mesh.sum_(total) / num_targets, None

        # 2. Unscale (fp16), make the divisor exact, measure, clip; step only if loss and gradient are numbers.
        if not self.params.optimizer_in_bwd:
            self.scaler.unscale_(self.optimizer)
            grad_norm = training.clip_gradients(
                self.model.parameters(), self.params.clip_grad_norm, scale=divisor / num_targets
            )
            if self.guard.allows(loss, grad_norm):
                self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        self.state.count(counts)
        self.monitor.after_step(micro_batches, counts, loss)
        return loss, grad_norm

    def _forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        with self.offloading, self.precision.autocast():
            return self.batch_loss(batch)

    def batch_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Return the loss summed over the targets of a micro-batch, and their number: what this recipe teaches."""
        num_targets = training.count_targets(batch["labels"])  # on the host, where nobody waits for it
        batch = training.to_device(batch, self.device)
        tokens, labels = batch["tokens"], shift_labels(batch["labels"])  # [b, s]
        weights, places = shift_weights(batch.get("weights")), (batch.get("mask"), batch.get("input_pos"))
        total = loss_sum(self.loss_fn, self.model, tokens, labels, *places, weights, num_targets)
        return total, num_targets

    def validate(self) -> dict[str, float]:
        """Return the loss per target over the whole validation set, or nothing where there is none."""
        if not self.dataset_val:
            return {}
        with self.monitor.paused():
            val_loss = training.mean_loss(self.model, self._forward, self.loader_val, self.mesh)
        self.state.note_validation(val_loss)
        return {"val_loss": val_loss}

    def _answer(self, prompt: str) -> str:
        """Return what the model answers, greedily, in the template it is trained in."""
        rendered, num_tokens = self.dataset.render_prompt(prompt), self.params.sample_max_new_tokens
        with self.precision.autocast():
            return generate_text(self.model, self.tokenizer, rendered, max_new_tokens=num_tokens)

    def save_checkpoint(self) -> None:
        """Write one complete step, point `latest` (and `best`) at it, and delete what is no longer to be kept."""
        self.monitor.flush()
        with self.monitor.paused():
            self.checkpoints.save(self.state, self.model, self.optimizer, self._write_model)

    def _write_model(self, model: Any, directory: Path) -> None:
        self.checkpointer.save_model(model, directory, self.tokenizer)

    def cleanup(self) -> None:
        """Close what was opened; runs after success and after failure."""
        self.exit_stack.close()


@tune.config.parse
def recipe_main(params: FullFinetuneParams) -> int:
    """Run the recipe; return 0, or 130, 138 or 143 after a request to stop."""
    recipe = FullFinetuneRecipe(params)
    try:
        with training.explain_out_of_memory(lambda: recipe.memory_plan):
            recipe.setup()
            recipe.train()
        recipe.monitor.log_summary(recipe.state, recipe.dataset.report().template)
    finally:
        recipe.cleanup()
    return recipe.exit_code


if __name__ == "__main__":
    sys.exit(recipe_main())
