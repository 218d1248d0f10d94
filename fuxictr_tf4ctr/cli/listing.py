"""``fuxictr list``: what there is, one line each."""

import argparse
import fnmatch
from typing import Any

from fuxictr_tf4ctr.cli.options import add_config
from fuxictr_tf4ctr.errors import SettingsError


def add_commands(commands: Any) -> None:
    """Add ``list`` to the parser's commands."""
    listing = commands.add_parser(
        "list",
        help="show experiments, models and their parts",
        description="Show what there is, one line each.",
    )
    listing.add_argument(
        "what",
        nargs="?",
        default="all",
        choices=("all", *_LISTINGS),
        help="what to show (default: models and expids)",
    )
    listing.add_argument(
        "pattern", nargs="?", default="*", help="only names that match, e.g. '*DCN*' or '*_frappe'"
    )
    add_config(listing)
    listing.set_defaults(call=_list)


def _list(arguments: argparse.Namespace) -> int:
    shown = ("models", "expids") if arguments.what == "all" else (arguments.what,)
    found = 0
    for what in shown:
        rows = [
            row for row in _LISTINGS[what](arguments) if fnmatch.fnmatch(row[0], arguments.pattern)
        ]
        if len(shown) > 1 and rows:
            print(f"{what}:")
        width = max((len(name) for name, _ in rows), default=0)
        for name, description in rows:
            print(f"{name:<{width}}  {description}".rstrip())
        found += len(rows)
    if not found:
        raise SettingsError(f"nothing matches {arguments.pattern!r}")
    return 0


def _list_models(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    from fuxictr_tf4ctr.registry import describe_models

    return describe_models(arguments.zoo)


def _list_expids(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    from fuxictr_tf4ctr.settings.reading import list_expids

    return [
        (expid, f"{section['model']} on {section['dataset_id']}")
        for expid, section in list_expids(arguments.config).items()
    ]


def _list_datasets(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    from fuxictr_tf4ctr.settings.reading import list_datasets

    return list_datasets(arguments.config)


def _list_encoders(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    from fuxictr_tf4ctr.twin import ENCODERS

    return _first_lines(ENCODERS)


def _list_fusions(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    from fuxictr_tf4ctr.twin import FUSIONS

    return _first_lines(FUSIONS)


def _list_sample_selections(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    from fuxictr_tf4ctr.twin import SAMPLE_SELECTIONS

    return _first_lines(SAMPLE_SELECTIONS)


def _first_lines(classes: Any) -> list[tuple[str, str]]:
    return [(name, (cls.__doc__ or "").split("\n")[0]) for name, cls in sorted(classes.items())]


_LISTINGS = {
    "models": _list_models,
    "expids": _list_expids,
    "datasets": _list_datasets,
    "encoders": _list_encoders,
    "sample_selections": _list_sample_selections,
    "fusions": _list_fusions,
}
