"""The command line: it parses, calls one function and prints.

Exit status: 0 done; 1 the run failed; 2 settings or data are not valid; 130 interrupted; 143
terminated by SIGTERM.
"""

import argparse
import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fuxictr_tf4ctr import __version__
from fuxictr_tf4ctr.errors import SettingsError, Terminated, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: Arguments; those of the process where None.
    """
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.call(arguments)
    except UserError as error:
        print(f"fuxictr: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fuxictr: interrupted", file=sys.stderr)
        return 130
    except Terminated as stop:
        print("fuxictr: terminated; go on with --resume", file=sys.stderr)
        return stop.exit_code
    except BrokenPipeError:
        # The reader of a listing closed the pipe; nothing is left to say.
        sys.stderr.close()
        return 0


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="fuxictr",
        description="Train CTR models in FuxiCTR, with TF4CTR twins of the known ones.",
        epilog="Exit status: 0 done, 1 the run failed, 2 settings or data not valid, "
        "130 interrupted, 143 terminated.",
    )
    parser.add_argument("--version", action="version", version=f"fuxictr-tf4ctr {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="train and evaluate one experiment",
        description="Train and evaluate one experiment. The first run on a data set encodes it.",
    )
    run.add_argument("--expid", required=True, help="the experiment; 'fuxictr list' shows them")
    _add_config(run)
    run.add_argument(
        "--gpu", type=int, metavar="N", help="index of the GPU, -1 for the CPU (default: -1)"
    )
    run.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting, its value in YAML: --set epochs=5 --set 'metrics=[AUC]'",
    )
    run.add_argument(
        "--output", metavar="DIR", help="folder of the runs (default: model_root, ./checkpoints)"
    )
    run.add_argument(
        "--resume",
        nargs="?",
        type=Path,
        const=True,
        default=False,
        metavar="RUN",
        help="go on with an unfinished run: the folder given, or the expid's latest",
    )
    run.set_defaults(call=_run)

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
    _add_config(listing)
    listing.set_defaults(call=_list)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="DIR",
        help="folder of model_config and dataset_config (default: ./config, then the package's)",
    )
    parser.add_argument(
        "--zoo", metavar="DIR", help="FuxiCTR checkout with more models (default: $FUXICTR_HOME)"
    )


def _run(arguments: argparse.Namespace) -> int:
    # Imported here: torch takes seconds that --help and a mistyped command should not.
    from fuxictr_tf4ctr.experiment import run_experiment
    from fuxictr_tf4ctr.records import metrics_line
    from fuxictr_tf4ctr.settings import load_settings

    overrides = _overrides(arguments.overrides)
    if arguments.gpu is not None:
        overrides["gpu"] = arguments.gpu
    if arguments.output is not None:
        overrides["model_root"] = arguments.output
    settings = load_settings(arguments.expid, arguments.config, overrides, arguments.zoo)
    record = run_experiment(settings, arguments.resume)
    print(f"{record.expid}: {record.parameters:,} parameters, {record.seconds['total']:.1f} s")
    for split, metrics in (("valid", record.valid), ("test", record.test)):
        if metrics:
            print(f"{split:>5}  {metrics_line(metrics)}")
    print(f"  run  {record.folder}")
    return 0


def _overrides(assignments: Sequence[str]) -> dict[str, Any]:
    overrides = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise SettingsError(f"--set {assignment!r}: write it as KEY=VALUE")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SettingsError(f"--set {assignment!r}: the value is no valid YAML") from error
    return overrides


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
    from fuxictr_tf4ctr.settings import list_expids

    return [
        (expid, f"{section['model']} on {section['dataset_id']}")
        for expid, section in list_expids(arguments.config).items()
    ]


def _list_datasets(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    from fuxictr_tf4ctr.settings import list_datasets

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


if __name__ == "__main__":
    sys.exit(main())
