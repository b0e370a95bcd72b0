"""LoRA fine-tuning: the weights of a model are frozen, and small adapters beside them are trained.

    tune run lora_finetune --config llama2/7B_lora model_checkpoint=DIR dataset.source=my.jsonl

Copy this file (`tune cp lora_finetune mine.py`), change what you like, and run it: `tune run ./mine.py ...`.
It is read from top to bottom: `setup` builds everything in an order it explains, `train` is the loop.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
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
from tune.modules.loss import loss_sum
from tune.modules.peft import adapter_parameters, apply_lora, cast_adapters, choose_lora, reset_adapters
from tune.utils import expand_path, get_device, get_logger, set_seed


class LoraFinetuneRecipe:
    """Trains LoRA or DoRA adapters beside frozen weights, 4-bit ones if asked, in one process or many.

    Each optimizer step divides the summed loss of all its micro-batches by their number of target tokens, so the
    gradient does not depend on how the step was cut up. Saved steps resume bit for bit on the same machine.
    """

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
        self.run = training.RunCounters()  # where the run stands; saved with each step
        self.memory = training.MemoryCheck()
        self.opened = ExitStack()  # what cleanup() closes, the last one first

    # ---- Before training -------------------------------------------------------------------------------

    def load_checkpoint(self) -> training.SavedStep | None:
        """Build the checkpointer, hold the output directory, and return the saved step to resume from, if any."""
        params = self.params
        self.output_dir = expand_path(params.output_dir)
        self.checkpointer = instantiate_offering(params.checkpointer, {"output_dir": params.output_dir})
        resume = params.resume_from_checkpoint
        return training.claim_output_dir(
            self.output_dir, self.opened, resume=resume, checkpointer=self.checkpointer
        )

    def setup(self) -> None:
        """Build everything `train` uses. Cheap checks come first, the weights late, the saved state last."""
        params = self.params
        # 1. This process, the others, and the place to write to, before any work that could not be written.
        if params.deterministic:
            training.make_deterministic()
        self.device = get_device(params.device)
        self.mesh = training.init_mesh(
            self.device,
            enable_fsdp=params.enable_fsdp,
            replicate_dim=params.data_parallel_replicate_dim,
            shard_dim=params.data_parallel_shard_dim,
            cpu_offload=params.fsdp_cpu_offload,
            optimizer_in_bwd=params.optimizer_in_bwd,
            dtype=params.dtype,
        )
        self.opened.callback(self.mesh.close)
        resumed = self.load_checkpoint()

        # 2. Precision and seed: everything after this may draw random numbers, the same on every process.
        self.precision = training.plan_precision(params.dtype, params.param_dtype, self.device)
        saved = training.read_run(resumed.state_dir) if resumed else {}
        seed = saved["seed"] if saved and params.seed is None else params.seed
        self.seed = set_seed(self.mesh.from_rank_zero(lambda: set_seed(seed)))
        self.log.info(f"{self.device}, {self.precision}, seed {self.seed}, output in {self.output_dir}")

        # 3. Tokenizer, data and loss, in seconds: a mistake there shows before gigabytes of weights are read.
        self.base_dir = self.checkpointer.find_model_dir()
        self.tokenizer = instantiate_offering(params.tokenizer, {"checkpoint_dir": str(self.base_dir)})
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

        self.loss_fn = instantiate_offering(
            params.loss, {"ignore_index": CROSS_ENTROPY_IGNORE_IDX, "reduction": "sum"}
        )

        # 4. Model: without memory first, then weight by weight, so the host never holds a second copy. The base is
        #    always the checkpoint's; what has been learnt since is in the adapters.
        adapter_dir = resumed.adapter_dir if resumed else self.checkpointer.adapter_checkpoint
        self.model = self._setup_model(adapter_dir)

        # 5. What changes the weights. The schedule needs the number of steps, which the data gave.
        self.gradients = training.GradientSync(self.model, self.mesh)
        self.optimizer = training.build_optimizer(
            params.optimizer,
            adapter_parameters(self.model).values(),
            in_backward=params.optimizer_in_bwd,
            world_size=self.mesh.world_size,
        )
        self.lr_scheduler = training.build_lr_scheduler(params.lr_scheduler, self.optimizer, self.num_steps)
        self.scaler = GradScaler(self.device.type, enabled=self.precision.needs_loss_scaling)
        self.guard = training.NonFiniteGuard(params.on_non_finite, self.scaler)
        self.saver = training.StepSaver(
            self.output_dir,
            self.device,
            keep_last_n=params.keep_last_n_checkpoints,
            in_background=params.enable_async_checkpointing,
        )
        self.opened.callback(self.saver.close)

        # 6. What watches.
        self.logs = training.RunLogs(params.metric_logger, self.output_dir, overwrite=not resumed)
        self.opened.callback(self.logs.close)
        self.spikes = training.SpikeWatch()
        self.profiler = training.build_profiler(params.profiler, self.output_dir / "profiler")
        self.speed = training.build_speed_meter(self.model, self.device, self.precision, self.mesh.world_size)
        self.log.info(
            f"Steps: {self.num_steps}, each of {params.gradient_accumulation_steps} x {params.batch_size} sequences on "
            f"{training.describe_processes(self.model, self.mesh)}. "
            f"Limit: {self.speed.limit / 1e12:.3g} TFLOP/s, as measured for matrix products on this device\n"
            + training.describe_repeatability(params, self.device, self.model, self.mesh.world_size)
        )

        # 7. The saved state goes into what now stands; random states last, since building has drawn numbers.
        #    Then a file that says exactly what is running: not before, since a resume may be refused here.
        self.fingerprint = training.make_fingerprint(
            params,
            self.SAME_ON_RESUME,
            model=self.model.config,
            # A lora_ builder's arguments are not in the sizes.
            builder=training.describe_component(params.model),
            base=training.hash_weight_files(self.base_dir),
            dataset=self.mesh.from_rank_zero(lambda: training.hash_dataset(self.dataset)),
            sequences_per_step=params.batch_size
            * params.gradient_accumulation_steps
            * self.mesh.data_parallel_size,
            code=training.hash_code(__file__),
            seed=self.seed,
            device=self.device.type,
            # Without a schedule, more epochs only add steps at the end.
            num_steps=self.num_steps if self.lr_scheduler else "any",
        )
        self.stateful: Any = {"sampler": self.sampler, "scaler": self.scaler, "spikes": self.spikes}
        if self.lr_scheduler:
            self.stateful["lr_scheduler"] = self.lr_scheduler
        self.mesh.seed_this_rank(self.seed)
        if resumed:
            self._go_on_from(resumed, saved)
        if resumed or params.resume_from_checkpoint:  # a run killed before its first save has left lines, too
            self.logs.rewind(self.run.step)
        training.write_resolved_config(params, self.output_dir / "config.yaml", {"seed": self.seed})

    def _go_on_from(self, resumed: training.SavedStep, saved: dict[str, Any]) -> None:
        """Put the state of a saved step into what now stands, unless it is another run's."""
        training.resume_state(
            resumed,
            saved,
            self.fingerprint,
            self.model,
            self.optimizer,
            self.device,
            self.stateful,
            allow_changes=self.params.allow_changes_on_resume,
        )
        self.run.restore(saved)
        self.saver.link(latest=self.run.step, best=self.run.best_step)
        self.log.info(f"Resumed from {resumed.path}: step {self.run.step} of {self.num_steps}")

    def _setup_data(
        self, components: Component | tuple[Component, ...], batch_size: int, shuffle: bool
    ) -> tuple[Any, Any, ResumableSampler]:
        """Build one dataset, or several as one, with its loader; say what there is to learn from it."""
        dataset: Any = build_datasets(components, self.tokenizer)
        self.log.info(f"Data: {dataset.report()}")
        loader, sampler = training.build_loader(
            dataset,
            self.params,
            batch_size=batch_size,
            padding_idx=self.tokenizer.pad_id,
            shuffle=shuffle,
            seed=self.seed,
            mesh=self.mesh,
        )
        return dataset, loader, sampler

    def _setup_model(self, adapter_dir: Path | None) -> Any:
        params = self.params
        with torch.device("meta"):
            model = instantiate_offering(params.model, {"checkpoint_dir": str(self.base_dir)})
            if not adapter_parameters(model):  # a lora_ builder has added them
                adapter = read_adapter_config(adapter_dir, model) if adapter_dir else None
                apply_lora(model, choose_lora(params, adapter))
        model.to(self.precision.param_dtype)
        # In fp32 whatever the base is: they are small, and bf16 would round small steps away.
        cast_adapters(model, torch.float32)
        report = self.dataset.report()
        training.check_tokenizer_fits(self.tokenizer, model.config, report)
        # A base that fits is held whole by every process, unless that was ruled out. (Steps within the backward pass
        # come before the gradients of whole copies are added up.)
        needs_shards = (
            params.data_parallel_shard_dim > 1 or params.fsdp_cpu_offload or params.optimizer_in_bwd
        )
        is_sharded = training.shards_frozen_base(model, self.mesh, required=needs_shards)
        self.memory.plan = training.plan_memory(
            model,
            params,
            training.longest_row(report),
            loss_fn=self.loss_fn,
            precision=self.precision,
            device=self.device,
            shard_dim=self.mesh.shard_dim if is_sharded else 1,
            cpu_offload=is_sharded and params.fsdp_cpu_offload,
        )
        self.memory.plan.log()
        # Recomputation first, so that what is compiled includes it; then each process gets room for its part.
        if params.enable_activation_checkpointing:
            training.checkpoint_activations(model.layers)
        if params.compile:
            training.compile_blocks(model.layers)
        own_layers = params.custom_sharded_layers or ()
        if is_sharded:
            training.shard_model(model, self.mesh, own_layers=own_layers, cpu_offload=params.fsdp_cpu_offload)
        elif own_layers:
            self.log.info(f"Nothing is sharded: custom_sharded_layers {list(own_layers)} has no effect.")
        if params.low_cpu_ram:
            self.log.info("Loading holds one tensor beside the model's own, with or without low_cpu_ram.")
        self.checkpointer.load_into(model, self.base_dir, device=self.device)
        reset_adapters(model, torch.float32)
        if adapter_dir:
            load_adapter(model, adapter_dir, base=self.base_dir)
        num_parameters = sum(weight.numel() for weight in model.parameters())
        num_trained = sum(weight.numel() for weight in adapter_parameters(model).values())
        self.log.info(
            f"Model: {num_parameters / 1e6:,.1f}M parameters, {num_trained / 1e6:,.2f}M of them in adapters, "
            "which alone are trained"
        )
        return model.train()

    # ---- Training --------------------------------------------------------------------------------------

    def train(self) -> None:
        """Run the loop to its end, or to the request to stop; `exit_code` then says which."""
        params = self.params
        offloading = training.activation_offloading(
            self.model, self.device, params.enable_activation_offloading
        )
        run = self.run
        if run.step == 0:
            self._generate_samples()
        with (
            training.StopRequest(self.mesh) as stop,
            self.saver,
            training.Progress(self.num_steps, run.step) as self.progress,
            self.profiler as profiler,
        ):
            self.speed.start()
            for epoch in range(run.epoch, params.epochs):
                run.begin_epoch(epoch)
                self.sampler.set_epoch(epoch)
                windows = training.group_micro_batches(self.loader, params.gradient_accumulation_steps)
                for micro_batches in islice(windows, self.steps_per_epoch - run.step_in_epoch):
                    run.step += 1
                    run.step_in_epoch += 1
                    before = training.get_rng_state(self.device)
                    keep_for_study = partial(self._keep_for_study, micro_batches, before)

                    # 1. Count what the step trains on, on all processes, before its first gradient: the loss's divisor.
                    counts = training.count_tokens(micro_batches, self.tokenizer.pad_id)
                    counts = training.sum_counts(counts, self.mesh)
                    divisor = max(counts.num_targets, 1)

                    # 2. Gradients add up over the micro-batches, and so does the loss, on the device; the last backward
                    #    pass adds up those of all processes.
                    loss = torch.zeros((), device=self.device)
                    for batch, is_last_batch in training.mark_last(micro_batches):
                        with self.gradients.micro_step(is_last_batch):
                            with offloading, self.precision.autocast():
                                micro_loss = self._loss_sum(batch) / divisor
                            loss += micro_loss.detach()
                            if params.optimizer_in_bwd:  # the next line already steps
                                total = self.mesh.sum_(loss.clone())
                                self.guard.allows(run.step, total, before_stopping=keep_for_study)
                            self.scaler.scale(micro_loss).backward()  # type: ignore[no-untyped-call]
                    self.mesh.sum_(loss)

                    # 3. Unscale (fp16), measure, clip; step only if loss and gradient are numbers.
                    grad_norm = None
                    if not params.optimizer_in_bwd:
                        self.scaler.unscale_(self.optimizer)
                        grad_norm = training.clip_gradients(self.model.parameters(), params.clip_grad_norm)
                        if self.guard.allows(run.step, loss, grad_norm, keep_for_study):
                            self.scaler.step(self.optimizer)
                        self.scaler.update()
                        self.optimizer.zero_grad(set_to_none=True)

                    # 4. Book-keeping: from here on everything describes the finished step.
                    lr = training.get_lr(self.optimizer)
                    if self.lr_scheduler:
                        self.lr_scheduler.step()
                    self.sampler.advance(sum(len(batch["tokens"]) for batch in micro_batches))
                    run.num_tokens += counts.num_tokens
                    run.num_targets += counts.num_targets
                    self.speed.count(counts)
                    self.progress.advance()
                    self.memory.after_step(micro_batches)
                    profiler.step()

                    # 5. What is due. A request to stop makes this step the last one, and so a saved one.
                    stopping = stop.agreed()
                    is_last = run.step == self.num_steps
                    epoch_ends = run.step_in_epoch == self.steps_per_epoch
                    metrics: dict[str, Any] = {}
                    if is_last or stopping or run.is_due(params.log_every_n_steps, otherwise=True):
                        metrics = self._measure(loss, lr, grad_norm)
                    if is_last or run.is_due(params.run_val_every_n_steps, otherwise=epoch_ends):
                        metrics |= self.validate()
                    self._log(metrics)
                    if is_last or run.is_due(params.generate_every_n_steps):
                        self._generate_samples()
                    save_due = run.is_due(params.save_every_n_steps) or (
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

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the loss per target token over the whole validation set, or nothing where there is none."""
        if not self.params.dataset_val:
            return {}
        self.model.eval()
        total, counts = torch.zeros((), device=self.device), training.TokenCounts()
        with self.speed.paused(), self.precision.autocast():
            for batch in self.loader_val:
                total += self._loss_sum(batch)
                counts += training.count_tokens([batch], self.tokenizer.pad_id)
        self.model.train()
        num_targets = training.sum_counts(counts, self.mesh).num_targets
        val_loss = float(self.mesh.sum_(total)) / max(num_targets, 1)
        self.run.note_validation(val_loss)
        return {"val_loss": val_loss}

    def _measure(self, loss: torch.Tensor, lr: float, grad_norm: torch.Tensor | None) -> dict[str, Any]:
        """Return what is logged of the finished step; the only place where the loss is read from the device."""
        run = self.run
        run.loss = float(loss)
        self.spikes.observe(run.step, run.loss)
        metrics = {"epoch": run.epoch, "loss": run.loss, "lr": lr}
        if grad_norm is not None:
            metrics["grad_norm"] = float(grad_norm)
        metrics |= vars(self.speed.read())
        metrics |= {"num_tokens": run.num_tokens, "num_trained_tokens": run.num_targets}
        if self.params.log_peak_memory_stats:
            metrics["peak_memory_gib"] = self.mesh.max(training.get_peak_memory_gib(self.device))
        return metrics

    def _log(self, metrics: dict[str, Any]) -> None:
        if metrics:
            self.logs.metrics.log_dict(metrics, self.run.step)
            self.progress.show(self.run.step, metrics)

    def _generate_samples(self) -> None:
        """Answer the sample prompts, greedily, in the template the model is trained in."""
        if not self.params.sample_prompts:
            return
        num_tokens = self.params.sample_max_new_tokens
        with self.speed.paused(), self.precision.autocast():
            for prompt in self.params.sample_prompts:
                rendered = self.dataset.render_prompt(prompt)
                answer = generate_text(self.model, self.tokenizer, rendered, max_new_tokens=num_tokens)
                self.logs.samples.log_dict({"prompt": prompt, "answer": answer}, self.run.step)
                self.log.info(f"step {self.run.step}, sample: {prompt!r} -> {answer!r}")

    # ---- Saving and resuming ---------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Write one complete step, point `latest` (and `best`) at it, and delete what is no longer to be kept."""
        self.run.note_saving()
        self.logs.flush()
        with self.speed.paused():
            self.saver.save(
                self.run.step,
                self.model,
                self.optimizer,
                self.run.state(seed=self.seed, fingerprint=self.fingerprint),
                self.stateful,
                self._write_model,
                best=self.run.best_step,
            )

    def _keep_for_study(self, micro_batches: list[dict[str, torch.Tensor]], rng: dict[str, Any]) -> None:
        """Save the finished step before one that cannot be taken, and write what is known of that one."""
        failed_step = self.run.step
        sample_ids = training.upcoming_sample_ids(self.sampler, micro_batches)
        self.run.undo_step()
        training.set_rng_state(rng, self.device)
        # With optimizer_in_bwd a bad gradient has been stepped with: such weights must not replace good ones.
        if self.run.step > self.saver.last_step and training.weights_are_finite(self.model):
            self.save_checkpoint()
            self.saver.wait()
        with self.precision.autocast():
            training.save_failed_step(
                self.output_dir,
                failed_step,
                self.model,
                micro_batches,
                sample_ids=sample_ids,
                loss_of=self._loss_sum,
            )

    def _write_model(self, model: Any, directory: Path) -> None:
        save_adapter(model, directory / "adapter", str(self.base_dir), self.tokenizer)
        if not self.params.save_adapter_weights_only:
            self.checkpointer.save_model(model, directory, self.tokenizer)

    # ---- After training --------------------------------------------------------------------------------

    def summarize(self) -> None:
        """Say how the run ended, where its model is, and what to type next."""
        template = self.dataset.report().template
        base = self.checkpointer.checkpoint_dir if self.params.save_adapter_weights_only else ""
        self.log.info(
            training.format_summary(self.output_dir, self.run, self.num_steps, self.speed, template, base)
        )

    def cleanup(self) -> None:
        """Close what was opened; runs after success and after failure."""
        self.opened.close()


@tune.config.parse
def recipe_main(params: LoraFinetuneParams) -> int:
    """Run the recipe; return 0, or 130, 138 or 143 after a request to stop."""
    recipe = LoraFinetuneRecipe(params)
    try:
        with training.explain_out_of_memory(lambda: recipe.memory.plan):
            recipe.setup()
            recipe.train()
        recipe.summarize()
    finally:
        recipe.cleanup()
    return recipe.exit_code


if __name__ == "__main__":
    sys.exit(recipe_main())
