"""``fuxictr list`` and ``show``: what there is, one line each, and an experiment whole."""

import argparse
import fnmatch
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.cli.options import add_config, add_overrides, parse_overrides
from fuxictr_tf4ctr.errors import SettingsError


def add_commands(commands: Any) -> None:
    """Add ``list`` and ``show`` to the parser's commands."""
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
    show = commands.add_parser(
        "show",
        help="print an experiment whole",
        description="Print an experiment with all that it inherits and all defaults, as the "
        "sections of FuxiCTR's dataset_config.yaml and model_config.yaml.",
    )
    show.add_argument("expid", help="the experiment: TF4CTR_DCNv2_demo, say")
    add_config(show)
    add_overrides(show, "--set c=0.7")
    show.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write a configuration folder instead, which runs by itself here and under FuxiCTR",
    )
    show.set_defaults(call=_show)


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


def _show(arguments: argparse.Namespace) -> int:
    from fuxictr_tf4ctr.settings.reading import load_settings
    from fuxictr_tf4ctr.settings.showing import as_sections, as_yaml, write_folder

    settings = load_settings(
        arguments.expid,
        arguments.config,
        parse_overrides(arguments.overrides),
        arguments.zoo,
        runs_here=False,
        data_here=False,
    )
    if arguments.output is not None:
        write_folder(settings, arguments.output)
        print(f"config {arguments.output}")
        return 0
    for file, section in zip(("dataset", "model"), as_sections(settings), strict=True):
        print(f"# {file}_config.yaml\n{as_yaml(section)}", end="")
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
