"""How a command is declared: its options before the function that it calls."""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import shown
from fuxictr_tf4ctr.schema import POSITIVE, Kind, whole

if TYPE_CHECKING:
    from fuxictr_tf4ctr.runs.loading import LoadedRun

# As in the registry, whose import takes seconds.
_CHECKOUT_VARIABLE = "FUXICTR_HOME"


def of_kind(read: Callable[[str], Any], kind: Kind) -> Callable[[str], Any]:
    """Return an argparse type: a text is read, and what it gives must be of a kind."""

    def parse(text: str) -> Any:
        try:
            value = read(text)
        except ValueError:
            value = text
        if expected := kind.expects(value):
            raise argparse.ArgumentTypeError(f"{shown(text)} must be {expected}")
        return value

    return parse


def whole_number(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """Return an argparse type: a whole number within bounds."""
    return of_kind(int, whole(least, most))


COUNT = whole_number(1)
GPU = whole_number(-1, 1023)
SEED = whole_number(0, 2**32 - 1)
PROCESSES = whole_number(1, 4096)
ABOVE_ZERO = of_kind(float, POSITIVE)


Option = Callable[[Any], Any]
"""Adds one or more options to a command's parser."""

COMMANDS: defaultdict[str, list[Callable[[Any], None]]] = defaultdict(list)
"""Module -> what adds each of its commands to the parser's, in the order of the help."""


def command(name: str, summary: str, *options: Option) -> Callable[[Any], Any]:
    """Return a decorator that makes a function a command, which its docstring describes."""

    def enter(call: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
        def add(commands: Any) -> None:
            described = " ".join((call.__doc__ or "").split())
            parser = commands.add_parser(name, help=summary, description=described)
            parser.set_defaults(call=call, default_of=parser.get_default)
            for option in options:
                option(parser)

        COMMANDS[call.__module__].append(add)
        return call

    return enter


def option(*names: str, **how: Any) -> Option:
    """Declare an option as argparse does."""
    return lambda parser: parser.add_argument(*names, **how)


def together(*options: Option) -> Option:
    """Make one of options that several commands have."""
    return lambda parser: [each(parser) for each in options]


def flag(name: str, help_text: str) -> Option:
    """Declare an option without a value."""
    return option(name, action="store_true", help=help_text)


def number(
    name: str, help_text: str, kind: Callable[[str], Any] = COUNT, default: Any = None
) -> Option:
    """Declare an option that is a number; its help ends with its default, if it has one."""
    help_text += "" if default is None else f" (default: {default})"
    return option(name, type=kind, default=default, metavar="N", help=help_text)


def choice(name: str, choices: Sequence[str], help_text: str) -> Option:
    """Declare an option that is one of a few words, of which the first is the default."""
    help_text += f" (default: {choices[0]})"
    return option(name, default=choices[0], choices=choices, help=help_text)


ZOO = option(
    "--zoo", metavar="DIR", help="FuxiCTR checkout with more models (default: $FUXICTR_HOME)"
)
CONFIG = together(
    option(
        "--config",
        metavar="DIR",
        help="folder of model_config and dataset_config (default: ./config, then the package's)",
    ),
    ZOO,
)
RUN = option("--run", required=True, metavar="RUN", help="folder of a finished run")
JSON = flag("--json", "print JSON instead of a table")


def overrides(example: str) -> Option:
    """Declare ``--set KEY=VALUE``, to be read by :func:`parse_overrides`."""
    return option(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"override a setting, its value in YAML: {example}",
    )


def engine(help_text: str) -> Option:
    """Declare ``--engine`` and ``--address``: what starts the processes, and where."""
    address = option(
        "--address",
        metavar="HOST:PORT",
        help="with --engine ray: the cluster (default: $RAY_ADDRESS, or this machine alone)",
    )
    return together(choice("--engine", ("local", "ray"), help_text), address)


@contextmanager
def zoo_for_all(arguments: argparse.Namespace) -> Iterator[None]:
    """Make ``--zoo`` hold for every lookup of a model, in processes started meanwhile too."""
    zoo, before = getattr(arguments, "zoo", None), os.environ.get(_CHECKOUT_VARIABLE)
    if zoo is not None:
        os.environ[_CHECKOUT_VARIABLE] = os.path.abspath(os.path.expanduser(zoo))
    try:
        yield
    finally:
        if zoo is not None:
            os.environ.pop(_CHECKOUT_VARIABLE)
            if before is not None:
                os.environ[_CHECKOUT_VARIABLE] = before


def given_run(arguments: argparse.Namespace) -> "LoadedRun":
    """Load the run that the arguments name."""
    from fuxictr_tf4ctr.runs.loading import load_run

    device = "cpu" if arguments.gpu < 0 else f"cuda:{arguments.gpu}"
    return load_run(arguments.run, device, arguments.zoo)


def check_engine(arguments: argparse.Namespace) -> None:
    """Raise SettingsError where the options of :func:`engine` do not go together."""
    if arguments.engine != "ray":
        only_for(arguments, "--engine ray", "--address")


def only_for(
    arguments: argparse.Namespace, needed: str, *names: str, mend: str = "give both, or neither"
) -> None:
    """Raise SettingsError where options have another value than their default, to no effect.

    Args:
        arguments: Those of a command, without what the options need.
        needed: What the options are for.
        names: The options.
        mend: What to do.
    """
    values = {name: name.removeprefix("--").replace("-", "_") for name in names}
    given = [n for n, key in values.items() if getattr(arguments, key) != arguments.default_of(key)]
    if given:
        verb = "is" if len(given) == 1 else "are"
        raise SettingsError(f"{', '.join(given)} {verb} for {needed}: {mend}")


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` assignments, values in YAML.

    Raises:
        SettingsError: One of them is no assignment, or its value no YAML.
    """
    from fuxictr_tf4ctr.settings.sections import parse_yaml

    overrides = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise SettingsError(f"--set {assignment!r}: write it as KEY=VALUE")
        try:
            overrides[key] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise SettingsError(
                f"--set {shown(assignment)}: the value is no valid YAML: {error}"
            ) from error
    return overrides
