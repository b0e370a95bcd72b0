"""adapter_config.json, as peft writes and reads it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tune.checkpoints.config_fields import ConfigFields, read_json
from tune.checkpoints.manifest import check_saved_folder
from tune.errors import CheckpointError
from tune.utils.paths import expand_path

CONFIG_FILE = "adapter_config.json"
# What does not change what an adapter computes, or only how it was begun.
_HARMLESS = (
    *("auto_mapping", "peft_version", "inference_mode", "revision", "task_type", "megatron_core"),
    *("layers_pattern", "qalora_group_size"),
    "merge_weights",  # of 2023: whether eval() merged
)
# How adapters were begun beside a base that stayed what it was. The others ("pissa", "olora", "corda", "loftq",
# "lora_ga") took something out of it, and what they left is not in the adapter's files.
_BEGUN = (True, False, "gaussian", "eva", "orthogonal")
_SCORES = "SEQ_CLS"  # of peft's tasks
_MAX_PATTERN = 300  # characters
_MAX_PATTERNS = 4000
_LARGEST_ALPHA = 1e9  # weights of fp32 hold no product with much more


@dataclass(frozen=True)
class AdapterSettings:
    """What adapter_config.json says of an adapter.

    Args:
        base: name or path of the model it was trained on; "" if it does not say.
        rank, alpha, dropout, use_dora, use_rslora: as in `LoRAConfig`.
        rank_pattern, alpha_pattern: other values for modules whose names end as a pattern says; the first one counts.
        targets: names, or ends of names, of the modules with adapters; None where they are given in some other form,
            and the weights alone say which they are.
        parameters: names, or ends of names, of parameters with adapters: of experts in stacks, and of modules' weights.
        modules_to_save: names, or ends of names, of modules that were trained whole.
        token_ids: tokens whose rows were trained, by name, or end of a name, of the module; "" is the embedding.
        keeps_tie: a matrix trained whole is both embedding and output matrix, where the base ties them.
        scores: it belongs to a reward model.
    """

    base: str
    rank: int
    alpha: float
    dropout: float
    use_dora: bool
    use_rslora: bool
    rank_pattern: tuple[tuple[re.Pattern[str], int], ...]
    alpha_pattern: tuple[tuple[re.Pattern[str], float], ...]
    targets: tuple[str, ...] | None
    parameters: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    token_ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    keeps_tie: bool = False
    scores: bool = False

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's adapter."""
        name = self._said(module)
        return next((rank for pattern, rank in self.rank_pattern if pattern.match(name)), self.rank)

    def alpha_of(self, module: str) -> float:
        """Return the alpha of a module's adapter."""
        name = self._said(module)
        return next((alpha for pattern, alpha in self.alpha_pattern if pattern.match(name)), self.alpha)

    def is_target(self, module: str) -> bool:
        """Whether a module is named among `targets`, or its weight among `parameters`."""
        return self._said(module) != module or any(
            module == target
            or module.endswith(f".{target}")
            or (target == "all-linear" and module != "lm_head")
            for target in self.targets or ()
        )

    def is_parameter(self, name: str) -> bool:
        """Whether a parameter is named among `parameters`."""
        return any(name == target or name.endswith(f".{target}") for target in self.parameters)

    def _said(self, module: str) -> str:
        """Return the name that patterns speak of: the module's, or that of its weight where this has the adapter."""
        weight = f"{module}.weight"
        return weight if self.is_parameter(weight) else module


def read_settings(folder: Path) -> AdapterSettings:
    """Return what a folder's adapter_config.json says.

    Raises:
        CheckpointError: it is missing or no JSON, or some field asks for what is not supported; all are named.
    """
    path = folder / CONFIG_FILE
    content = read_json(path)
    fields = ConfigFields(content, str(path))
    fields.ignore(_HARMLESS)
    fields.expect("peft_type", "LORA")
    if content.get("task_type") is not None:
        fields.expect("task_type", "CAUSAL_LM", _SCORES)
    fields.expect("bias", "none", advice="trained biases are no part of the adapters here")
    fields.expect("enable_lora")  # of 2023: which parts of a fused matrix
    fields.expect(
        "init_lora_weights",
        *_BEGUN,
        advice="others change the base when they begin, and that base is not here. peft saves an adapter for the "
        "unchanged one with save_pretrained(..., path_initial_model_for_weight_conversion=...)",
    )
    for name in ("fan_in_fan_out", "lora_bias", "use_qalora", "use_bdlora"):
        fields.expect(name, False)
    fields.expect("layer_replication", [])
    for name in ("loftq_config", "corda_config", "lora_ga_config"):
        fields.expect(name, {})
    if content.get("init_lora_weights") == "eva":
        fields.ignore(("eva_config",))  # what A was begun from
    else:
        fields.expect("eva_config", {})
    settings = AdapterSettings(
        base=fields.text("base_model_name_or_path", ""),
        rank=fields.integer("r"),
        alpha=fields.number("lora_alpha"),
        dropout=fields.number("lora_dropout", 0.0),
        use_dora=fields.flag("use_dora", False),
        use_rslora=fields.flag("use_rslora", False),
        rank_pattern=_read_patterns(fields, "rank_pattern", int),
        alpha_pattern=_read_patterns(fields, "alpha_pattern", float),
        targets=_read_targets(fields, content),
        parameters=_read_names(fields, content, "target_parameters"),
        modules_to_save=_read_names(fields, content, "modules_to_save"),
        token_ids=_read_token_ids(fields, content),
        keeps_tie=fields.flag("ensure_weight_tying", False),
        scores=content.get("task_type") == _SCORES,
    )
    ranks = (settings.rank, *(rank for _, rank in settings.rank_pattern))
    alphas = (settings.alpha, *(alpha for _, alpha in settings.alpha_pattern))
    if min(ranks) < 1:
        fields.problem(f"a rank (`r`, `rank_pattern`) is {min(ranks)}; it must be at least 1")
    if wrong := [alpha for alpha in alphas if not 0 < alpha <= _LARGEST_ALPHA]:
        fields.problem(
            f"an alpha (`lora_alpha`, `alpha_pattern`) is {wrong[0]}; it must be above 0 and at most {_LARGEST_ALPHA:g}"
        )
    if not 0 <= settings.dropout < 1:
        fields.problem(f"`lora_dropout` is {settings.dropout}; it must be at least 0 and below 1")
    fields.finish()
    return settings


def _read_targets(fields: ConfigFields, content: Mapping[str, Any]) -> tuple[str, ...] | None:
    narrowing = [
        name for name in ("layers_to_transform", "exclude_modules") if content.get(name) not in (None, [])
    ]
    fields.ignore(("target_modules", "layers_to_transform", "exclude_modules"))
    targets = content.get("target_modules")
    if targets == "all-linear":
        targets = [targets]
    if isinstance(targets, list) and not all(isinstance(target, str) for target in targets):
        fields.problem("`target_modules` is a list of other things than names")
    elif not isinstance(targets, list | str | None):
        fields.problem(f"`target_modules` is {targets!r}; it must be a list of names")
    # A regular expression chooses modules as well, and so do layers; then the weights themselves are asked.
    return tuple(targets) if isinstance(targets, list) and not narrowing else None


def _read_names(fields: ConfigFields, content: Mapping[str, Any], field_name: str) -> tuple[str, ...]:
    fields.ignore((field_name,))
    names = content.get(field_name)
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        fields.problem(f"`{field_name}` is no list of names")
        return ()
    return tuple(names)


def _read_token_ids(fields: ConfigFields, content: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    fields.ignore(("trainable_token_indices",))
    given = content.get("trainable_token_indices")
    by_module = {"": given} if isinstance(given, list) else given
    if not by_module:
        return {}
    if not isinstance(by_module, dict) or not all(
        isinstance(ids, list) and all(type(token_id) is int for token_id in ids) for ids in by_module.values()
    ):
        fields.problem("`trainable_token_indices` is no list of token ids, nor one for each module")
        return {}
    return {name: tuple(ids) for name, ids in by_module.items() if ids}


def _read_patterns(fields: ConfigFields, name: str, kind: type) -> tuple[tuple[re.Pattern[str], Any], ...]:
    patterns: list[tuple[re.Pattern[str], Any]] = []
    entries = fields.mapping(name)
    if len(entries) > _MAX_PATTERNS:
        fields.problem(f"`{name}` has {len(entries)} entries; {_MAX_PATTERNS} are read at most")
        return ()
    for text, value in entries.items():
        if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
            fields.problem(f"`{name}` has {value!r} for {text!r}; it must be a number")
            continue
        if not _is_bounded(text):
            fields.problem(f"`{name}` has a pattern that is too complicated: {text[:80]!r}")
            continue
        try:
            patterns.append((re.compile(rf"(?:.*\.)?(?:{text})$"), value))
        except (re.error, OverflowError):
            fields.problem(f"`{name}` has a pattern that is no regular expression: {text[:80]!r}")
    return tuple(patterns)


def _is_bounded(pattern: str) -> bool:
    """Whether matching takes little time whatever the pattern is: a file may come from a stranger.

    Tried again from each place a name has, what repeats costs a factor of its length, and so do the ways to choose
    between alternatives; a group that repeats may cost every power of two.
    """
    num_repeats = len(re.findall(r"[*+{]|(?<!\()\?", pattern))
    if len(pattern) > _MAX_PATTERN or num_repeats > 2 or pattern.count("(") > 3 or pattern.count("|") > 16:
        return False
    return not re.search(r"\)[*+{?]|\\\d", pattern)  # nor what repeats what was matched before


def describe_adapter(
    sizes: Mapping[str, tuple[int, float]],
    all_modules: Iterable[str],
    *,
    base: str,
    dropout: float,
    use_dora: bool,
    use_rslora: bool,
    in_full: bool = False,
    main: tuple[int, float] | None = None,
    parameters: Collection[str] = (),
) -> dict[str, Any]:
    """Return the content of adapter_config.json.

    Args:
        sizes: rank and alpha of each adapted module or parameter, by its name in the other tools' model.
        all_modules: names of all the modules and parameters there that could have adapters.
        base, dropout, use_dora, use_rslora: as in `AdapterSettings`.
        in_full: modules are named one by one: ends of their names may be those of other parts of the model, too.
        main: the size that is said for all, but for those that are said to have another; None: the most frequent one.
        parameters: those of `sizes` that are parameters.
    """
    siblings = Counter(_leaf(module) for module in all_modules)
    leaves = Counter(_leaf(module) for module in sizes)
    rank, alpha = main or Counter(sizes.values()).most_common(1)[0][0]
    others: dict[str, tuple[int, float]] = {}
    for leaf in leaves:
        own = {module: size for module, size in sizes.items() if _leaf(module) == leaf}
        if len(set(own.values())) == 1:
            own = {leaf: next(iter(own.values()))}
        others.update({name: size for name, size in own.items() if size != (rank, alpha)})

    def shortest(names: Iterable[str]) -> list[str]:
        return sorted(
            {
                name if in_full or leaves[_leaf(name)] != siblings[_leaf(name)] else _leaf(name)
                for name in names
            }
        )

    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "lora_dropout": dropout,
        "target_modules": shortest(name for name in sizes if name not in parameters),
        **({"target_parameters": shortest(parameters)} if parameters else {}),
        "rank_pattern": {name: size[0] for name, size in others.items() if size[0] != rank},
        "alpha_pattern": {name: _plain(size[1]) for name, size in others.items() if size[1] != alpha},
        "use_dora": use_dora,
        "use_rslora": use_rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _leaf(name: str) -> str:
    """Return the end of a name that says which matrix it is: of a module's weight, with the two modules around it."""
    parts = name.split(".")
    return ".".join(parts[-3:] if parts[-1] == "weight" else parts[-1:])


def _plain(alpha: float) -> float | int:
    """Return a whole number as such: other tools expect alpha to be one."""
    return int(alpha) if float(alpha).is_integer() else alpha


def find_adapter_dir(directory: Path | str) -> Path:
    """Return the folder with adapter_config.json: this one, `adapter/` of a saved step, or of an output's latest step.

    Raises:
        CheckpointError: there is none, or a saved step's is no longer what was saved.
    """
    path = expand_path(directory)
    try:
        for folder in (path, path / "adapter", path / "latest" / "adapter"):
            if (folder / CONFIG_FILE).is_file():
                check_saved_folder(folder)
                return folder
    except OSError as error:
        raise CheckpointError(f"{error.filename or directory} cannot be read: {error.strerror}") from error
    raise CheckpointError(
        f"no adapter was found in {path}: expected {CONFIG_FILE} with adapter_model.safetensors, as peft writes them, "
        "or a saved step with adapter/"
    )
