"""Parameters of recipes that train either every weight of a model or adapters beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tune.config.diagnostics import Diagnostic, problem
from tune.config.params import fields_of, param
from tune.recipes.params.checks import check_trains_all
from tune.recipes.params.lora_finetune import LoraFinetuneParams


@dataclass(frozen=True)
class FullOrLoraParams(LoraFinetuneParams):
    """What such a recipe can be told: adapters are trained where lora_rank or a lora_ builder asks for them."""

    lora_rank: int | None = param(
        None,
        minimum=1,
        maximum=2**16,
        group="LoRA",
        fixed_on_resume=True,
        help="Inner width r of each adapter; null trains every weight, unless a lora_ builder or adapter_checkpoint "
        "has adapters.",
    )

    def trains_adapters(self) -> bool:
        """Tell whether adapters are trained, and the model's own weights stay as they are."""
        builder = self.model.path.rpartition(".")[2]
        return (
            self.lora_rank is not None
            or builder.startswith(("lora_", "qlora_"))
            or bool(self.checkpointer.kwargs.get("adapter_checkpoint"))
        )

    def adapter_settings(self) -> dict[str, Any] | None:
        """Return what the adapters are to be like, as `choose_lora` takes it; None where every weight is trained."""
        return self.lora_settings() if self.trains_adapters() else None

    def decided_elsewhere(self) -> dict[str, str]:
        """Return the settings of adapters that are not this object's to say, and why."""
        if self.trains_adapters():
            return super().decided_elsewhere()
        return dict.fromkeys(_SETTINGS, "without effect: every weight is trained")

    def cross_checks(self) -> Iterator[Diagnostic]:
        """Yield what is wrong between fields that are each right on their own."""
        yield from super().cross_checks()
        if self.trains_adapters():
            return
        infos = fields_of(type(self))
        for name in _SETTINGS:
            if getattr(self, name) not in (None, infos[name].default):
                yield problem(
                    "is for adapters, and every weight is trained: set lora_rank, for example to 8, or remove it",
                    (name, "lora_rank"),
                )
        yield from check_trains_all(self.optimizer)


_SETTINGS = tuple(
    name
    for name, info in fields_of(FullOrLoraParams).items()
    if (info.group == "LoRA" or name in ("save_adapter_weights_only", "loraplus_lr_ratio"))
    and not info.short_for
    and name != "lora_rank"
)
