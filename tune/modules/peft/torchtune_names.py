"""torchtune's names in `torchtune.modules.peft`, and what stands for them here."""

from __future__ import annotations

HERE = {
    name: f"tune.modules.peft.torchtune_functions.{name}"
    for name in (
        "AdapterModule",
        "DoRALinear",
        "disable_adapter",
        "get_adapter_params",
        "get_adapter_state_dict",
        "get_merged_lora_ckpt",
        "set_trainable_params",
    )
}

GONE = {
    "QATLoRALinear": "quantisation-aware training is not here; LoRALinear(quantize_base=True) has a 4-bit matrix",
    "get_lora_module_names": "adapted_modules(model) has the modules with adapters by path",
    "validate_missing_and_unexpected_for_lora": "tune.checkpoints' load_into and load_adapter check the names",
}
