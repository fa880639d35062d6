"""Options of the command line that evaluators declare: shown, checked, and turned into settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from hydrabench.cli.common import FOLDER
from hydrabench.cli.values import Name
from hydrabench.errors import ConfigError, lookup

if TYPE_CHECKING:
    from hydrabench.evaluators import Evaluator, Option

COMMAND_OF = {"attack": "attack", "method": "certify"}  # by the option that chooses the evaluator
TYPES: dict[str, Any] = {"int": int, "float": float, "folder": FOLDER}


class SectionedCommand(click.Command):
    """A command with many options, whose --help lists them under headings."""

    def __init__(self, *args: Any, sections: Mapping[str, Collection[str]], **kwargs: Any) -> None:
        """sections: names of options by heading; those that are in none come first."""
        super().__init__(*args, **kwargs)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        elsewhere = {name for names in self.sections.values() for name in names}
        shown = {parameter.name: parameter.get_help_record(ctx) for parameter in self.get_params(ctx)}
        general = [name for name in shown if name not in elsewhere]
        for heading, names in {"Options": general, **self.sections}.items():
            with formatter.section(heading):
                formatter.write_dl([record for name in names if (record := shown[name])])


class EvaluatorCommand(SectionedCommand):
    """A command whose options are its own and those of its evaluators, read when they are first needed."""

    def __init__(self, *args: Any, choice: str, sections: Mapping[str, Any], **kwargs: Any) -> None:
        """choice: the option that names the evaluator. sections: as for `SectionedCommand`, of its own options."""
        self.choice, self._complete = choice, False
        self._declared: list[click.Parameter] = []
        super().__init__(*args, sections=sections, **kwargs)

    @property
    def params(self) -> list[click.Parameter]:
        """The options, those of the evaluators after the one that chooses among them."""
        if not self._complete:
            self._complete = True
            self._add_options()
        return self._declared

    @params.setter
    def params(self, declared: list[click.Parameter]) -> None:
        self._declared = declared

    def _add_options(self) -> None:
        evaluators = evaluators_of(self.choice)
        place = next(number for number, option in enumerate(self._declared) if option.name == self.choice)
        chooser = self._declared[place]
        assert isinstance(chooser, click.Option)
        chooser.help = f"One of: {', '.join(evaluators)}."
        declared = declared_options(evaluators)
        added = {
            name: _click_option(options, self.choice, _default(name, evaluators)) for name, options in declared.items()
        }
        self._declared[place + 1 : place + 1] = added.values()
        headings: dict[str, list[str]] = {}
        for name, options in declared_options(evaluators).items():
            if options[0].heading:
                headings.setdefault(options[0].heading, []).append(name)
        self.sections = {**headings, **self.sections}


def evaluators_of(choice: str) -> dict[str, Evaluator]:
    """The evaluators of a command, by kind."""
    from hydrabench.evaluators import EVALUATORS

    return {kind: one for kind, one in EVALUATORS.items() if one.command == COMMAND_OF[choice]}


def declared_options(evaluators: Mapping[str, Evaluator]) -> dict[str, list[Option]]:
    """The options of some evaluators by name; those of one name differ in their help at most."""
    found: dict[str, list[Option]] = {}
    for evaluator in evaluators.values():
        for option in evaluator.options:
            same = found.setdefault(option.name, [])
            same += [] if option in same else [option]
    return found


def allowed_values(choice: str, name: str) -> list[str]:
    """The values that an option can have where its settings list them, of all evaluators; empty if they do not."""
    found: dict[str, None] = {}
    for evaluator in evaluators_of(choice).values():
        field = evaluator.settings.model_fields.get(name)
        if field is None:
            continue
        texts = [text for text in get_args(field.annotation) if isinstance(text, str)]
        if get_origin(field.annotation) is not Literal or not texts:
            return []
        found |= dict.fromkeys(texts)
    return list(found)


def _default(name: str, evaluators: Mapping[str, Evaluator]) -> str:
    """Return the default of an option as --help shows it: the first evaluator's, and which others have another."""
    kinds: dict[str, list[str]] = {}
    for kind, evaluator in evaluators.items():
        for option in evaluator.options:
            if option.name == name and option.default:
                kinds.setdefault(option.default, []).append(kind)
    first, *others = kinds or [""]
    return "; ".join([first, *(f"{', '.join(kinds[other])}: {other}" for other in others)])


def _click_option(options: list[Option], choice: str, default: str) -> click.Option:
    first = options[0]
    texts = list(dict.fromkeys(option.help for option in options))
    text = " ".join(one for one in texts if not any(one[:-1] in other for other in texts if other != one))
    shown = f"{text}  [default: {default}]" if default else text
    if first.kind == "flag":
        return click.Option([first.flag], is_flag=True, help=shown)
    if first.kind == "repeated":
        return click.Option([first.flag], multiple=True, help=shown)
    kind = TYPES.get(first.kind)
    if first.kind == "text" and first.role == "setting" and allowed_values(choice, first.setting or first.name):
        kind = Name(lambda: allowed_values(choice, first.setting or first.name), closed=True)
    return click.Option([first.flag], type=kind, help=shown)


def require_options(choice: str, kind: str, given: Mapping[str, Any]) -> None:
    """Refuse an unknown evaluator, and options that would do nothing with it. Raises: ConfigError."""
    evaluators = evaluators_of(choice)
    lookup("method", evaluators, kind)
    for name, options in declared_options(evaluators).items():
        if not _is_given(given.get(name)):
            continue
        option, takers = options[0], [other for other in evaluators if name in options_of(other)]
        if kind not in takers:
            raise ConfigError(f"{option.flag} is for --{choice} {', '.join(takers)}; with {kind} leave it out")
        if option.needs and not given.get(option.needs):
            raise ConfigError(f"{option.flag} is for --{option.needs}; without it leave it out")
        for other in option.against:
            if given.get(other) is not None:
                raise ConfigError(
                    f"{option.flag} {option.means}, so --{other} means nothing with it; leave one of them out"
                )


def _is_given(value: object) -> bool:
    return value is not None and value is not False and value != ()


def options_of(kind: str) -> dict[str, Option]:
    """The options of an evaluator by name; if it declares none, those of others that are named like its settings."""
    from hydrabench.evaluators import EVALUATORS

    evaluator = EVALUATORS[kind]
    if evaluator.options:
        return {option.name: option for option in evaluator.options}
    others = declared_options({name: one for name, one in EVALUATORS.items() if one.command == evaluator.command})
    return {name: options[0] for name, options in others.items() if name in evaluator.settings.model_fields}


def settings_of(kind: str, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings that were given, of one run or, where an option has several values, of several.

    Raises: ConfigError if what --set says is not KEY=VALUE.
    """
    from hydrabench.recipes import apply_override

    runs: list[dict[str, Any]] = [{"kind": kind}]
    for option in options_of(kind).values():
        value: Any = given.get(option.name)
        if not _is_given(value) or option.role != "setting":
            continue
        name, value = option.sets or (option.setting or option.name, value)
        value = ",".join(value) if option.kind == "repeated" else value
        cut = option.kind in ("list", "repeated", "several")
        parts = [part.strip() for part in value.split(",")] if cut else [value]
        values = parts if option.kind == "several" else [parts if cut else value]
        runs = [{**run, name: one} for run in runs for one in values]
    for text in given["overrides"]:
        for run in runs:
            apply_override(run, text)
    return runs


def require_distinct(kind: str, given: Mapping[str, Any], runs: Sequence[Any]) -> None:
    """Refuse one value twice where each makes a run. Raises: ConfigError."""
    if len(set(runs)) < len(runs):
        named = [one for one in options_of(kind).values() if one.kind == "several" and given.get(one.name)]
        texts = " and ".join(f"{option.flag} {given[option.name]}" for option in named)
        raise ConfigError(f"{texts} names one value twice; name each once")


def computing_of(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say how the evaluator computes."""
    names = [option.name for option in options_of(kind).values() if option.role == "computing"]
    return {name: given[name] for name in names if _is_given(given.get(name))}
