"""Options that several commands share."""

import argparse
import os
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


def command(
    commands: Any, name: str, call: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    """Add a command to the parser's; the docstring of what it calls describes it."""
    described = " ".join((call.__doc__ or "").split())
    parser = commands.add_parser(name, help=summary, description=described)
    parser.set_defaults(call=call)
    return parser


def add_number(
    parser: argparse.ArgumentParser,
    name: str,
    help_text: str,
    kind: Callable[[str], Any],
    default: Any = None,
) -> None:
    """Add an option that is a number; its help ends with its default, if it has one."""
    help_text += "" if default is None else f" (default: {default})"
    parser.add_argument(name, type=kind, default=default, metavar="N", help=help_text)


def add_zoo(parser: argparse.ArgumentParser) -> None:
    """Add ``--zoo``."""
    parser.add_argument(
        "--zoo", metavar="DIR", help="FuxiCTR checkout with more models (default: $FUXICTR_HOME)"
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` and ``--zoo``: where experiments and models are found."""
    parser.add_argument(
        "--config",
        metavar="DIR",
        help="folder of model_config and dataset_config (default: ./config, then the package's)",
    )
    add_zoo(parser)


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


def add_overrides(parser: argparse.ArgumentParser, example: str) -> None:
    """Add ``--set KEY=VALUE``, to be read by :func:`parse_overrides`."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"override a setting, its value in YAML: {example}",
    )


def add_run(parser: argparse.ArgumentParser, device: bool = True) -> None:
    """Add ``--run`` and, with ``device``, where its model computes; see :func:`given_run`."""
    parser.add_argument("--run", required=True, metavar="RUN", help="folder of a finished run")
    if device:
        add_number(parser, "--gpu", "index of the GPU, -1 for the CPU", GPU, -1)
    add_zoo(parser)


def given_run(arguments: argparse.Namespace) -> "LoadedRun":
    """Load the run that the arguments name."""
    from fuxictr_tf4ctr.runs.loading import load_run

    device = "cpu" if arguments.gpu < 0 else f"cuda:{arguments.gpu}"
    return load_run(arguments.run, device, arguments.zoo)


def add_engine(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Add ``--engine`` and ``--address``: what starts the processes, and where."""
    parser.add_argument(
        "--engine", default="local", choices=("local", "ray"), help=f"{help_text} (default: local)"
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="with --engine ray: the cluster (default: $RAY_ADDRESS, or this machine alone)",
    )


def check_engine(arguments: argparse.Namespace) -> None:
    """Raise SettingsError where the options of :func:`add_engine` do not go together."""
    if arguments.address is not None and arguments.engine != "ray":
        raise SettingsError("--address is for --engine ray: give both, or neither")


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
