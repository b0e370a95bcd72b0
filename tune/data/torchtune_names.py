"""torchtune's names in `torchtune.data`, and what stands for them here."""

from __future__ import annotations

_NO_IMAGES = "images are not read here"

HERE = {"padded_collate_packed": "tune.training.torchtune_functions.padded_collate_packed"}

GONE = {
    **dict.fromkeys(
        ("format_content_with_images", "load_image", "padded_collate_tiled_images_and_mask"), _NO_IMAGES
    ),
    "ChosenRejectedToMessages": "preference_dataset reads all forms of pairs by itself",
    "PromptTemplateInterface": "subclass PromptTemplate, or give a .jinja file",
    "left_pad_sequence": "use torch.nn.utils.rnn.pad_sequence(..., padding_side='left')",
}
