"""LoRA fine-tuning: the weights of a model are frozen, and small adapters beside them are trained.

    tune run lora_finetune --config llama2/7B_lora model_checkpoint=DIR dataset.source=my.jsonl

Copy this file (`tune cp lora_finetune mine.py`), change what you like, and run it: `tune run ./mine.py ...`.
It is read from top to bottom: `setup` builds everything in an order it explains, `train` is the loop.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.amp import GradScaler

import tune.config
from recipes.params.lora_finetune import LoraFinetuneParams
from tune import training
from tune.checkpoints import load_adapter, read_adapter_config, save_adapter
from tune.config import Component, instantiate_offering
from tune.data import CROSS_ENTROPY_IGNORE_IDX, ResumableSampler, shift_labels
from tune.datasets import build_datasets
from tune.generation import generate_text
from tune.modules import flops_per_token
from tune.modules.loss import loss_sum
from tune.modules.peft import LoRAConfig, adapter_parameters, apply_lora, reset_adapters
from tune.training.metric_logging import JSONLLogger
from tune.utils import expand_path, get_device, get_logger, set_seed


class LoraFinetuneRecipe:
    """Trains LoRA or DoRA adapters beside frozen weights, 4-bit ones if asked, in one process, on a CPU or a GPU.

    Each optimizer step divides the summed loss of all its micro-batches by their number of target tokens, so the
    gradient does not depend on how the step was cut up. Saved steps resume bit for bit on the same machine.
    """

    # Where a run stands, beside the objects that keep a state of their own: saved with each step.
    SAVED = (
        *("step", "epoch", "step_in_epoch", "num_tokens", "num_targets", "loss", "val_loss", "val_step"),
        *("best_val_loss", "best_step", "seed", "fingerprint"),
    )
    # Parameters that must be as they were for a resumed run to be the same run.
    SAME_ON_RESUME = (
        *("shuffle", "batch_size", "collate_fn", "gradient_accumulation_steps", "max_steps_per_epoch"),
        *("optimizer", "optimizer_in_bwd", "clip_grad_norm", "lr_scheduler", "loss", "dtype", "param_dtype"),
        *("lora_rank", "lora_alpha", "lora_dropout", "lora_attn_modules", "apply_lora_to_mlp"),
        *("apply_lora_to_output", "use_dora", "use_rslora", "quantize_base"),
    )

    def __init__(self, params: LoraFinetuneParams) -> None:
        self.params = params
        self.log = get_logger(params.log_level)
        self.exit_code = 0
        self.step = 0  # optimizer steps taken
        self.epoch = 0  # passes over the data begun before this one
        self.step_in_epoch = 0
        self.num_tokens = 0  # that went through the model, without padding
        self.num_targets = 0  # those whose next token was trained on
        self.loss = float("nan")  # as last read
        self.val_loss: float | None = None
        self.val_step = -1  # the step that val_loss is of
        self.best_val_loss = float("inf")  # among saved steps
        self.best_step: int | None = None
        self.lock: training.RunLock | None = None
        self.metric_loggers: list[Any] = []

    # ---- Before training -------------------------------------------------------------------------------

    def load_checkpoint(self) -> training.SavedStep | None:
        """Build the checkpointer, hold the output directory, and return the saved step to resume from, if any."""
        params = self.params
        self.output_dir = expand_path(params.output_dir)
        self.checkpointer = instantiate_offering(params.checkpointer, {"output_dir": params.output_dir})
        if self.checkpointer.output_dir != self.output_dir:
            self.log.info(
                f"checkpointer.output_dir is not used: saved steps go to output_dir, {self.output_dir}"
            )
        self.lock = training.RunLock(self.output_dir)
        training.remove_unfinished_steps(self.output_dir)
        resume = params.resume_from_checkpoint or self.checkpointer.resume_from_checkpoint
        return training.choose_step_to_resume(self.output_dir, resume, self.checkpointer.recipe_checkpoint)

    def setup(self) -> None:
        """Build everything `train` uses. Cheap checks come first, the weights late, the saved state last."""
        params = self.params
        # 1. The place to write to, before any work is done that could not be written.
        resumed = self.load_checkpoint()

        # 2. Device, precision and seed: everything after this may draw random numbers or tensors.
        plan = training.check_parallel_plan(
            enable_fsdp=params.enable_fsdp,
            data_parallel_replicate_dim=params.data_parallel_replicate_dim,
            data_parallel_shard_dim=params.data_parallel_shard_dim,
            fsdp_cpu_offload=params.fsdp_cpu_offload,
            custom_sharded_layers=params.custom_sharded_layers,
            low_cpu_ram=params.low_cpu_ram,
        )
        self.device = get_device(params.device)
        self.precision = training.plan_precision(params.dtype, params.param_dtype, self.device)
        run = training.read_run(resumed.state_dir) if resumed else {}
        self.seed = set_seed(run["seed"] if run and params.seed is None else params.seed)
        self.log.info(
            f"{self.device}, {plan}, {self.precision}, seed {self.seed}, output in {self.output_dir}"
        )

        # 3. Tokenizer and data, in seconds: a mistake there shows before gigabytes of weights are read.
        base_dir = self.checkpointer.find_model_dir()
        self.tokenizer = instantiate_offering(params.tokenizer, {"checkpoint_dir": str(base_dir)})
        self.dataset, self.loader, self.sampler = self._setup_data(
            params.dataset, params.batch_size, params.shuffle
        )
        if params.dataset_val:
            batch_size_val = params.batch_size_val or params.batch_size
            _, self.loader_val, _ = self._setup_data(params.dataset_val, batch_size_val, shuffle=False)
        self.steps_per_epoch = training.count_steps_per_epoch(
            len(self.loader), params.gradient_accumulation_steps, params.max_steps_per_epoch
        )
        self.num_steps = params.epochs * self.steps_per_epoch

        # 4. Model: without memory first, then weight by weight, so the host never holds a second copy. The base is
        #    always the checkpoint's; what has been learnt since is in the adapters.
        adapter_dir = resumed.adapter_dir if resumed else self.checkpointer.adapter_checkpoint
        self.model = self._setup_model(base_dir, adapter_dir)

        # 5. Loss, then what changes the weights. The schedule needs the number of steps, which the data gave.
        self.loss_fn = instantiate_offering(
            params.loss, {"ignore_index": CROSS_ENTROPY_IGNORE_IDX, "reduction": "sum"}
        )
        adapters = adapter_parameters(self.model)
        self.optimizer = training.build_optimizer(
            params.optimizer, adapters.values(), in_backward=params.optimizer_in_bwd
        )
        self.lr_scheduler = training.build_lr_scheduler(params.lr_scheduler, self.optimizer, self.num_steps)
        self.scaler = GradScaler(self.device.type, enabled=self.precision.needs_loss_scaling)
        self.guard = training.NonFiniteGuard(params.on_non_finite, self.scaler)

        # 6. What watches.
        self.metric_loggers = [
            JSONLLogger(str(self.output_dir), overwrite=not resumed),
            instantiate_offering(params.metric_logger, {"log_dir": str(self.output_dir)}),
        ]
        self.samples = JSONLLogger(str(self.output_dir), "samples.jsonl", overwrite=not resumed)
        self.profiler = training.build_profiler(params.profiler, self.output_dir / "profiler")
        self.speed = training.SpeedMeter(
            self.device,
            partial(
                flops_per_token,
                self.model.config,
                num_adapter_parameters=sum(weight.numel() for weight in adapters.values()),
            ),
            partial(training.measure_matmul_rate, self.device, self.precision.compute_dtype),
        )
        self.log.info(
            f"{self.num_steps} steps of {params.gradient_accumulation_steps} x {params.batch_size} sequences. "
            f"Limit: {self.speed.limit / 1e12:.3g} TFLOP/s, as measured for matrix products on this device"
        )

        # 7. The saved state goes into what now stands; random states last, since building has drawn numbers.
        #    Then a file that says exactly what is running: not before, since a resume may be refused here.
        self.fingerprint = training.make_fingerprint(
            params,
            self.SAME_ON_RESUME,
            model=self.model.config,
            builder=training.describe_component(
                params.model
            ),  # a lora_ builder's arguments are not in the sizes
            base=training.hash_weight_files(base_dir),
            dataset=training.hash_dataset(self.dataset),
            seed=self.seed,
            device=self.device.type,
            # Without a schedule, more epochs only add steps at the end.
            num_steps=self.num_steps if self.lr_scheduler else "any",
        )
        self.stateful: dict[str, Any] = {"sampler": self.sampler, "scaler": self.scaler}
        if self.lr_scheduler:
            self.stateful["lr_scheduler"] = self.lr_scheduler
        if resumed:
            training.check_fingerprint(run["fingerprint"], self.fingerprint, str(resumed.path))
            training.load_run_state(resumed.state_dir, self.model, self.optimizer, self.device, self.stateful)
            for name in self.SAVED:
                setattr(self, name, run[name])
            # The run may have ended after this step was saved, before it was linked, or some steps later.
            training.link_steps(self.output_dir, latest=self.step, best=self.best_step)
            for metric_logger in (*self.metric_loggers, self.samples):
                metric_logger.rewind(self.step)
            self.log.info(f"Resumed from {resumed.path}: step {self.step} of {self.num_steps}")
        training.write_resolved_config(params, self.output_dir / "config.yaml", {"seed": self.seed})

    def _setup_data(
        self, components: Component | tuple[Component, ...], batch_size: int, shuffle: bool
    ) -> tuple[Any, Any, ResumableSampler]:
        """Build one dataset, or several as one, with its loader; say what there is to learn from it."""
        dataset: Any = build_datasets(components, self.tokenizer)
        self.log.info(f"Data: {dataset.report()}")
        loader, sampler = training.build_loader(
            dataset,
            batch_size,
            self.params.collate_fn,
            padding_idx=self.tokenizer.pad_id,
            shuffle=shuffle,
            seed=self.seed,
            pin_memory=self.device.type == "cuda",
        )
        return dataset, loader, sampler

    def _setup_model(self, base_dir: Path, adapter_dir: Path | None) -> Any:
        params = self.params
        with torch.device("meta"):
            model = instantiate_offering(params.model, {"checkpoint_dir": str(base_dir)})
            if not adapter_parameters(model):  # a lora_ builder has added them
                apply_lora(model, self._choose_lora(model, adapter_dir))
        model.to(self.precision.param_dtype)
        training.check_tokenizer_fits(self.tokenizer, model.config, self.dataset.report())
        self.checkpointer.load_into(model, base_dir, device=self.device)
        # In fp32 whatever the base is: they are small, and bf16 would round small steps away.
        reset_adapters(model, torch.float32)
        if adapter_dir:
            load_adapter(model, adapter_dir)
        # Recomputation first, so that what is compiled includes it.
        if params.enable_activation_checkpointing:
            training.checkpoint_activations(model.layers)
        if params.compile:
            training.compile_blocks(model.layers)
        num_parameters = sum(weight.numel() for weight in model.parameters())
        num_trained = sum(weight.numel() for weight in adapter_parameters(model).values())
        self.log.info(
            f"Model: {num_parameters / 1e6:,.1f}M parameters, {num_trained / 1e6:,.2f}M of them in adapters, "
            "which alone are trained"
        )
        return model.train()

    def _choose_lora(self, model: Any, adapter_dir: Path | None) -> LoRAConfig:
        """Return what the adapters are like: as those to go on from, or as the parameters say."""
        params = self.params
        chosen: dict[str, Any] = {
            "rank": params.lora_rank,
            "alpha": params.lora_alpha,
            "dropout": params.lora_dropout,
            "attn_modules": params.lora_attn_modules,
            "apply_to_mlp": params.apply_lora_to_mlp,
            "apply_to_output": params.apply_lora_to_output,
            "use_dora": params.use_dora,
            "use_rslora": params.use_rslora,
            "quantize_base": params.quantize_base,
        }
        given = {name: value for name, value in chosen.items() if value is not None}
        return replace(read_adapter_config(adapter_dir, model) if adapter_dir else LoRAConfig(), **given)

    # ---- Training --------------------------------------------------------------------------------------

    def train(self) -> None:
        """Run the loop to its end, or to the request to stop; `exit_code` then says which."""
        params = self.params
        offloading = training.activation_offloading(
            self.model, self.device, params.enable_activation_offloading
        )
        if self.step == 0:
            self._generate_samples()
        with (
            training.StopRequest() as stop,
            training.Progress(self.num_steps, self.step) as self.progress,
            self.profiler as profiler,
        ):
            self.speed.start()
            for epoch in range(self.epoch, params.epochs):
                if epoch != self.epoch:
                    self.epoch, self.step_in_epoch = epoch, 0
                self.sampler.set_epoch(epoch)
                windows = training.group_micro_batches(self.loader, params.gradient_accumulation_steps)
                for micro_batches in islice(windows, self.steps_per_epoch - self.step_in_epoch):
                    self.step += 1
                    self.step_in_epoch += 1

                    # 1. Count what the whole step trains on, before its first gradient: the loss is divided by it.
                    counts = training.count_tokens(micro_batches, self.tokenizer.pad_id)
                    divisor = max(counts.num_targets, 1)

                    # 2. Gradients add up over the micro-batches, and so does the loss, on the device.
                    loss = torch.zeros((), device=self.device)
                    for batch in micro_batches:
                        with offloading, self.precision.autocast():
                            micro_loss = self._loss_sum(batch) / divisor
                        loss += micro_loss.detach()
                        if params.optimizer_in_bwd:
                            self.guard.allows(self.step, loss)  # the next line already steps
                        self.scaler.scale(micro_loss).backward()  # type: ignore[no-untyped-call]

                    # 3. Unscale (fp16), measure, clip; step only if loss and gradient are numbers.
                    grad_norm = None
                    if not params.optimizer_in_bwd:
                        self.scaler.unscale_(self.optimizer)
                        grad_norm = training.clip_gradients(self.model.parameters(), params.clip_grad_norm)
                        if self.guard.allows(self.step, loss, grad_norm):
                            self.scaler.step(self.optimizer)
                        self.scaler.update()
                        self.optimizer.zero_grad(set_to_none=True)

                    # 4. Book-keeping: from here on everything describes the finished step.
                    lr = training.get_lr(self.optimizer)
                    if self.lr_scheduler:
                        self.lr_scheduler.step()
                    self.sampler.advance(sum(len(batch["tokens"]) for batch in micro_batches))
                    self.num_tokens += counts.num_tokens
                    self.num_targets += counts.num_targets
                    self.speed.count(counts)
                    self.progress.advance()
                    profiler.step()

                    # 5. What is due. A request to stop makes this step the last one, and so a saved one.
                    stopping = bool(stop)
                    is_last = self.step == self.num_steps
                    epoch_ends = self.step_in_epoch == self.steps_per_epoch
                    metrics: dict[str, Any] = {}
                    if is_last or stopping or self._is_due(params.log_every_n_steps, otherwise=True):
                        metrics = self._measure(loss, lr, grad_norm)
                    if is_last or self._is_due(params.run_val_every_n_steps, otherwise=epoch_ends):
                        metrics |= self.validate()
                    self._log(metrics)
                    if is_last or self._is_due(params.generate_every_n_steps):
                        self._generate_samples()
                    save_due = self._is_due(params.save_every_n_steps) or (
                        epoch_ends and params.save_every_epoch
                    )
                    if is_last or stopping or save_due:
                        self.save_checkpoint()
                    if stopping:
                        self.exit_code = stop.exit_code
                        return

    def _loss_sum(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        batch = training.to_device(batch, self.device)
        labels = shift_labels(batch["labels"])
        return loss_sum(
            self.loss_fn, self.model, batch["tokens"], labels, batch.get("mask"), batch.get("input_pos")
        )

    def _is_due(self, every_n_steps: int | None, otherwise: bool = False) -> bool:
        return otherwise if every_n_steps is None else self.step % every_n_steps == 0

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the loss per target token over the whole validation set, or nothing where there is none."""
        if not self.params.dataset_val:
            return {}
        self.model.eval()
        total, num_targets = torch.zeros((), device=self.device), 0
        with self.speed.paused(), self.precision.autocast():
            for batch in self.loader_val:
                total += self._loss_sum(batch)
                num_targets += training.count_tokens([batch], self.tokenizer.pad_id).num_targets
        self.model.train()
        self.val_loss, self.val_step = float(total) / max(num_targets, 1), self.step
        return {"val_loss": self.val_loss}

    def _measure(self, loss: torch.Tensor, lr: float, grad_norm: torch.Tensor | None) -> dict[str, Any]:
        """Return what is logged of the finished step; the only place where the loss is read from the device."""
        self.loss = float(loss)
        metrics = {"epoch": self.epoch, "loss": self.loss, "lr": lr}
        if grad_norm is not None:
            metrics["grad_norm"] = float(grad_norm)
        metrics |= vars(self.speed.read())
        metrics |= {"num_tokens": self.num_tokens, "num_trained_tokens": self.num_targets}
        if self.params.log_peak_memory_stats:
            metrics["peak_memory_gib"] = training.get_peak_memory_gib(self.device)
        return metrics

    def _log(self, metrics: dict[str, Any]) -> None:
        if metrics:
            for metric_logger in self.metric_loggers:
                metric_logger.log_dict(metrics, self.step)
            self.progress.show(self.step, metrics)

    def _generate_samples(self) -> None:
        """Answer the sample prompts, greedily, in the template the model is trained in."""
        if not self.params.sample_prompts:
            return
        with self.speed.paused(), self.precision.autocast():
            for prompt in self.params.sample_prompts:
                answer = generate_text(
                    self.model,
                    self.tokenizer,
                    self.dataset.render_prompt(prompt),
                    max_new_tokens=self.params.sample_max_new_tokens,
                )
                self.samples.log_dict({"prompt": prompt, "answer": answer}, self.step)
                self.log.info(f"step {self.step}, sample: {prompt!r} -> {answer!r}")

    # ---- Saving and resuming ---------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Write one complete step, point `latest` (and `best`) at it, and delete what is no longer to be kept."""
        # Only a loss of these very weights counts.
        if self.val_loss is not None and self.val_step == self.step and self.val_loss < self.best_val_loss:
            self.best_val_loss, self.best_step = self.val_loss, self.step
        run = {name: getattr(self, name) for name in self.SAVED}
        with self.speed.paused(), training.write_step(self.output_dir, self.step) as staged:
            save_adapter(
                self.model, staged / "adapter", str(self.checkpointer.checkpoint_dir), self.tokenizer
            )
            if not self.params.save_adapter_weights_only:
                self.checkpointer.save_model(self.model, staged, self.tokenizer)
            training.save_run_state(
                staged / "state", self.model, self.optimizer, self.device, run, self.stateful
            )
        training.link_steps(self.output_dir, latest=self.step, best=self.best_step)
        if self.params.keep_last_n_checkpoints:
            training.prune_saved_steps(self.output_dir, self.params.keep_last_n_checkpoints)
        self.log.info(f"Saved {self.output_dir / training.step_name(self.step)}")

    # ---- After training --------------------------------------------------------------------------------

    def summarize(self) -> None:
        """Say how the run ended, where its model is, and what to type next."""
        losses = {"loss": self.loss} | ({} if self.val_loss is None else {"val_loss": self.val_loss})
        base = str(self.checkpointer.checkpoint_dir) if self.params.save_adapter_weights_only else ""
        self.log.info(
            training.format_summary(
                self.output_dir,
                self.step,
                self.num_steps,
                losses,
                self.speed,
                self.dataset.report().template,
                adapted_base=base,
            )
        )

    def cleanup(self) -> None:
        """Close what was opened; runs after success and after failure."""
        for metric_logger in self.metric_loggers:
            metric_logger.close()
        if self.lock:
            self.lock.release()


@tune.config.parse
def recipe_main(params: LoraFinetuneParams) -> int:
    """Run the recipe; return 0, or 130 or 143 after a request to stop."""
    recipe = LoraFinetuneRecipe(params)
    try:
        with training.explain_out_of_memory():
            recipe.setup()
            recipe.train()
        recipe.summarize()
    finally:
        recipe.cleanup()
    return recipe.exit_code


if __name__ == "__main__":
    sys.exit(recipe_main())
