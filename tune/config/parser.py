"""The command line of a recipe: a config file, overrides, and whatever options its author adds."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from tune.config.check import check_tree
from tune.config.diagnostics import ordered, render_all, shorten
from tune.config.fields import ParamInfo, fields_of
from tune.config.nodes import without_entry
from tune.config.overrides import is_override
from tune.config.resolution import Resolution, handed_over
from tune.config.resolve import LoadedTree, load_tree, plain_tree, read_recipe_key, resolve
from tune.config.suggestions import nearest
from tune.config.trust import trust
from tune.errors import ConfigError

# What the parser itself puts into a namespace; the historic form takes it out again.
_OWN = ("config", "override", "remove", "trust", "dry_run")
_EXIT_BAD_CONFIG = 2


class TuneArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that reads a config file and overrides.

    It understands ``--config FILE``, ``--override k=v ...`` and ``--remove a.b ...`` (both repeatable),
    ``--trust PACKAGE``, ``--dry-run``, and bare ``k=v`` and ``~a.b`` anywhere. Options are added as with any
    parser. There are two ways to use it::

        params = TuneArgumentParser(params=MyParams).parse_params()    # a frozen, checked object

        args, rest = TuneArgumentParser(params=MyParams).parse_known_args()
        params = MyParams(**vars(args))

    Args:
        params: the params dataclass, which says what may be set, and what must be; a plain dataclass will do. Without
            one `parse_known_args` takes any key, with plain values. If the class has an attribute `recipe_names`,
            `parse_params` refuses a config whose key `recipe` names none of them, nor the running script.
    """

    def __init__(self, *args: Any, params: type[Any] | None = None, **kwargs: Any) -> None:
        # an abbreviation that works today changes its meaning when an option is added
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self.params_cls = params
        add = self.add_argument_group("configuration").add_argument
        add("--config", metavar="FILE", action="append", help="YAML file with parameters")
        add(
            "--override",
            metavar="KEY=VALUE",
            nargs="+",
            action="extend",
            help="parameters that count more than the file's, such as optimizer.lr=1e-4; the option's name may be "
            "left out, and ~KEY removes a value",
        )
        add("--remove", metavar="KEY", nargs="+", action="extend", help="values to take out of the file")
        add(
            "--trust",
            metavar="PACKAGE",
            action="append",
            help="a package outside tune whose components the config may name; its code will run",
        )
        add(
            "--dry-run",
            action="store_true",
            help="print the resolved parameters with their sources, and stop",
        )

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse in the historic way: what was set in a namespace, and the arguments nobody knew.

        Values have the types of the params class; where none is known, those of YAML 1.2's core. The config and its
        overrides set the defaults of the options that were added; such an option given by name counts more.
        """
        given = list(sys.argv[1:] if args is None else args)
        own, overrides, rest = self._read_own(given)
        added = {action.dest: action for action in self._actions if action.dest not in _OWN}
        infos = fields_of(self.params_cls) if self.params_cls is not None else {}
        tree = load_tree(infos, config=own.config, overrides=overrides, removals=own.remove or ())
        values = plain_tree(tree, infos)
        if self.params_cls is not None:
            infos = {name: info for name, info in infos.items() if name not in added}
            values |= _typed_values(tree, infos, added)
        self._refuse_if_faulty(tree)
        for name in values.keys() & added.keys():
            self._check_choice(added[name], values[name])
        # what the namespace holds already is no option's default, and one that is typed replaces it
        before = argparse.Namespace() if namespace is None else namespace
        for name in values.keys() & added.keys():
            value = values[name]
            try:
                value = self._get_value(added[name], value) if isinstance(value, str) else value
            except argparse.ArgumentError as error:
                self.error(str(error))
            setattr(before, name, value)
        with _optional(action for action in added.values() if action.dest in values):
            parsed, _ = super().parse_known_args(given, before)
        for name in _OWN:
            if hasattr(parsed, name):
                delattr(parsed, name)
        for name, value in values.items():
            if name not in added:
                setattr(parsed, name, value)
        if rest:
            listed = shorten(" ".join(rest), 200)
            self._print_message(
                f"{self.prog}: warning: not understood, and left over: {listed}\n", sys.stderr
            )
        return parsed, rest

    def parse_params(self, argv: Sequence[str] | None = None) -> Any:
        """Parse the command line into a frozen, checked object of the params class.

        On bad input all problems are printed to standard error and the process exits with code 2.

        Args:
            argv: the arguments; None means those of the process.

        Raises:
            ConfigError: the parser was made without `params`.
        """
        if self.params_cls is None:
            raise ConfigError(
                "parse_params needs to know the params class: TuneArgumentParser(params=MyParams)"
            )
        given = list(sys.argv[1:] if argv is None else argv)
        resolution = handed_over(self.params_cls, given)  # by `tune run`, which has judged them
        if resolution is not None:
            self._report(resolution)
            return resolution.params
        own, resolution = self._resolve(given)
        self._report(resolution)
        if not resolution.ok:
            if own.config is None and resolution.lacks_values:
                self._print_message("\nNo --config was given.\n", sys.stderr)
            self.exit(_EXIT_BAD_CONFIG)
        if own.dry_run:
            self._print_message(resolution.dump(), sys.stdout)
            self.exit(0)
        return resolution.params

    def read_params(self, words: Sequence[str]) -> Any:
        """Return a frozen, checked object of the params class, as `parse_params` does, in a program that goes on.

        Args:
            words: as on the command line.

        Raises:
            ConfigError: the words are wrong; the message shows every problem.
        """
        own, resolution = self._resolve(words)
        if not resolution.ok:
            hint = "\n\nNo config was given." if own.config is None and resolution.lacks_values else ""
            raise ConfigError(resolution.report() + hint)
        self._report(resolution)
        return resolution.params

    def _resolve(self, given: Sequence[str]) -> tuple[argparse.Namespace, Resolution[Any]]:
        own, overrides, rest = self._read_own(given)
        # what is no option and no override is shown among the other problems
        overrides += _joined(rest)
        # a class that says which recipes it belongs to keeps out the configs of others; a copy's own name is fine too
        names = getattr(self.params_cls, "recipe_names", ())
        assert self.params_cls is not None
        resolution: Resolution[Any] = resolve(
            self.params_cls,
            config=own.config,
            overrides=overrides,
            removals=own.remove or (),
            recipe=names[0] if names else None,
            recipe_aliases=(*names, sys.argv[0]),
        )
        return own, resolution

    def error(self, message: str) -> NoReturn:
        """Print a usage error and exit with code 2."""
        self._print_message(f"error: {message}\n({self.prog} --help explains the arguments)\n", sys.stderr)
        sys.exit(_EXIT_BAD_CONFIG)

    def format_help(self) -> str:
        """The options, and the parameters of the params class where it is known."""
        text = super().format_help()
        if self.params_cls is None:
            return text
        from tune.config.describe import parameters_text

        return f"{text}\n{parameters_text(self.params_cls)}"

    def _read_own(self, given: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
        """This parser's own options, all overrides in the order given, and what is neither."""
        with _optional(self._actions):
            own, extras = super().parse_known_args(given)
        if "--" in extras:
            extras.remove("--")
        bare = [argument for argument in extras if is_override(argument)]
        rest = [argument for argument in extras if not is_override(argument)]
        for argument in rest:
            close = self._near_option(argument)
            if close is not None:
                self.error(f"there is no option {argument.partition('=')[0]}; did you mean {close}?")
        overrides = list(own.override or ()) + bare
        position = {argument: index for index, argument in enumerate(given)}
        overrides.sort(key=lambda argument: position.get(argument, 0))
        if len(own.config or ()) > 1:
            self.error("--config is given twice; keep one")  # the first would be lost in silence
        own.config = find_config_file(own.config[0]) if own.config else None
        try:
            trust(*(own.trust or ()))
        except ConfigError as error:
            self.error(str(error))
        return own, overrides, rest

    def _report(self, resolution: Resolution[Any]) -> None:
        report = resolution.report(color=sys.stderr.isatty())
        if report:
            self._print_message(report + "\n", sys.stderr)

    def _near_option(self, argument: str) -> str | None:
        """One of this parser's own options that `argument` is a misspelling or abbreviation of."""
        if not argument.startswith("--"):
            return None
        name = argument.partition("=")[0]
        options = [option for option in self._option_string_actions if option.startswith("--")]
        shortened = [option for option in options if len(name) > 4 and option.startswith(name)]
        return shortened[0] if shortened else nearest(name, options, cutoff=0.85)

    def _refuse_if_faulty(self, tree: LoadedTree) -> None:
        problems = list(tree.problems)
        _, fault = read_recipe_key(tree.root)
        if fault is not None:
            problems.append(fault)
        if problems:
            self._print_message(render_all(ordered(problems), tree.files) + "\n", sys.stderr)
        if any(problem.severity == "error" for problem in problems):
            self.exit(_EXIT_BAD_CONFIG)

    def _check_choice(self, action: argparse.Action, value: Any) -> None:
        # argparse checks the choices of what is typed, not of defaults
        if action.choices is not None and value is not None and value not in action.choices:
            allowed = ", ".join(map(str, action.choices))
            self.error(f"{action.dest}: {value!r} in the config is not one of {allowed}")


@contextlib.contextmanager
def _optional(actions: Iterable[argparse.Action]) -> Iterator[None]:
    """Within this block none of these options is required."""
    required = [action for action in actions if action.required]
    for action in required:
        action.required = False
    try:
        yield
    finally:
        for action in required:
            action.required = True


def _typed_values(
    tree: LoadedTree, infos: Mapping[str, ParamInfo], others: Collection[str]
) -> dict[str, Any]:
    """The typed values of a tree; what is wrong with them joins its problems. `others` are no parameters."""
    root = tree.root
    for name in others:
        root = without_entry(root, name)
    checked = check_tree(root, infos, tree.problems.append, whole=tree.whole, complete=tree.complete)
    return {name: checked.values[name] for name in infos if name in checked.places or name in root.entries}


def _joined(rest: Sequence[str]) -> list[str]:
    """Arguments nobody knew, with `--name value` made one, so that it is reported once."""
    joined: list[str] = []
    for argument in rest:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1] and not argument.startswith("-"):
            joined[-1] = f"{joined[-1]}={argument}"
        else:
            joined.append(argument)
    return joined


def find_config_file(name: str) -> str:
    """The file that `name` means: a path, else a config that comes with tune, with or without its ending."""
    if os.path.exists(name):
        return name
    from tune.utils.paths import get_recipes_dir  # only where it is needed: start-up counts

    folder = get_recipes_dir() / "configs"
    for candidate in (folder / name, folder / f"{name}.yaml"):
        if ".." not in candidate.parts and candidate.is_file():
            return str(candidate)
    return f"{name}.yaml" if os.path.isfile(f"{name}.yaml") else name
