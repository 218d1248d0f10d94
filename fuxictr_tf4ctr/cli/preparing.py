"""Before a run: ``fuxictr init``, ``encode``, ``describe``, ``decode``, ``list`` and ``show``."""

import argparse
import fnmatch
import json
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.cli.options import (
    CONFIG,
    check_engine,
    command,
    engine,
    number,
    option,
    overrides,
    parse_overrides,
    together,
    whole_number,
)
from fuxictr_tf4ctr.errors import SettingsError

_DATASET = together(
    option("--dataset", required=True, help="the data set's id"),
    CONFIG,
    overrides("--set data_root=DIR --set compression=lzf"),
)


@command(
    "init",
    "make a configuration folder for a csv or parquet file",
    option(
        "data", type=Path, metavar="DATA",
        help="a file, or a folder with train and, perhaps, valid and test",
    ),
    option(
        "--label", required=True, metavar="COLUMN",
        help="what to predict, 0 or 1; of other words for it, COLUMN=WORD for 1",
    ),
    option("--output", type=Path, metavar="DIR", help="folder to write (default: <DATA>_config)"),
    option("--model", default="TF4CTR", help="model of the experiment (default: TF4CTR)"),
    option(
        "--split", default="random", metavar="HOW",
        help="how a tenth each is split off for validation and test: random, sequential (the "
        "last rows), time:COLUMN (the latest) or group:COLUMN (default: random)",
    ),
)  # fmt: skip
def _init(arguments: argparse.Namespace) -> int:
    """Guess the columns of csv or parquet files from their first rows, show the guess, and write a
    configuration folder with an experiment that fuxictr run trains.
    """
    from fuxictr_tf4ctr.analysis.results import as_text
    from fuxictr_tf4ctr.settings.writing import start_config

    start = start_config(
        arguments.data, arguments.label, arguments.output, arguments.model, arguments.split
    )
    print(as_text([column.row() for column in start.columns]))
    print(f"{start.rows:,} rows; {start.split}")
    if "positive" in start.label:
        print("label {name} is 1 where it says {positive!r}, else 0".format(**start.label))
    for column in start.times if "split_by" not in start.split else []:
        print(f"{column} is a time: --split time:{column} keeps the latest rows for the test")
    print(f"config {start.folder}: correct what is guessed wrong in dataset_config.yaml, then")
    print(f"fuxictr run --config {start.folder} --expid {start.expid}")
    return 0


def _params(arguments: argparse.Namespace) -> dict[str, Any]:
    from fuxictr_tf4ctr.settings.reading import load_dataset_params

    given = parse_overrides(arguments.overrides)
    return load_dataset_params(arguments.dataset, arguments.config, given)


def _encoded(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    from fuxictr_tf4ctr.datasets import encode_dataset

    params = _params(arguments)
    return encode_dataset(params), params


@command(
    "encode",
    "encode a data set to h5, or verify that it is encoded",
    _DATASET,
    engine("encode on this machine, or file by file on a Ray cluster"),
)
def _encode(arguments: argparse.Namespace) -> int:
    """Encode a data set to h5, or verify that it is encoded."""
    from fuxictr_tf4ctr.datasets import encode_dataset, manifest

    check_engine(arguments)
    params = _params(arguments)
    if arguments.engine == "ray":
        from fuxictr_tf4ctr.engines.ray.encoding import encode_on_ray

        dataset = encode_on_ray(params, arguments.address)
    else:
        dataset = encode_dataset(params)
    manifest.verify(dataset.data_dir)
    for split, rows in dataset.rows.items():
        print(f"{split:>5}  {rows:,} rows")
    print(f"  in   {dataset.data_dir}")
    return 0


@command("describe", "show rows, vocabularies, OOV rates and leaks of a data set", _DATASET)
def _describe(arguments: argparse.Namespace) -> int:
    """Show rows, vocabularies, OOV rates and leaks of a data set."""
    from fuxictr_tf4ctr.datasets import describe_dataset

    print(describe_dataset(*_encoded(arguments)))
    return 0


@command(
    "decode",
    "show encoded rows as raw values",
    _DATASET,
    option("--split", default="train", choices=("train", "valid", "test")),
    number("--first", "first row", whole_number(0, 2**62), 0),
    number("--rows", "how many", default=10),
)
def _decode(arguments: argparse.Namespace) -> int:
    """Show encoded rows as raw values."""
    from fuxictr_tf4ctr.datasets import decode_rows

    dataset, _ = _encoded(arguments)
    frame = decode_rows(dataset, arguments.split, arguments.first, arguments.rows)
    for row in frame.iter_rows(named=True):
        print(json.dumps(row, ensure_ascii=False))
    return 0


_LISTINGS = ("models", "expids", "datasets", "encoders", "sample_selections", "fusions")


@command(
    "list",
    "show experiments, models and their parts",
    option(
        "what", nargs="?", default="all", choices=("all", *_LISTINGS),
        help="what to show (default: models and expids)",
    ),
    option(
        "pattern", nargs="?", default="*", help="only names that match, e.g. '*DCN*' or '*_frappe'"
    ),
    CONFIG,
)  # fmt: skip
def _list(arguments: argparse.Namespace) -> int:
    """Show what there is, one line each."""
    shown = ("models", "expids") if arguments.what == "all" else (arguments.what,)
    found = 0
    for what in shown:
        listed = _listed(what, arguments)
        rows = [row for row in listed if fnmatch.fnmatch(row[0], arguments.pattern)]
        if len(shown) > 1 and rows:
            print(f"{what}:")
        width = max((len(name) for name, _ in rows), default=0)
        for name, description in rows:
            print(f"{name:<{width}}  {description}".rstrip())
        found += len(rows)
    if not found:
        raise SettingsError(f"nothing matches {arguments.pattern!r}")
    return 0


@command(
    "show",
    "print an experiment whole",
    option("expid", help="the experiment: TF4CTR_DCNv2_demo, say"),
    CONFIG,
    overrides("--set c=0.7"),
    option(
        "--output", type=Path, metavar="DIR",
        help="write a configuration folder instead, which runs by itself here and under FuxiCTR",
    ),
)  # fmt: skip
def _show(arguments: argparse.Namespace) -> int:
    """Print an experiment with all that it inherits and all defaults, as the sections of FuxiCTR's
    dataset_config.yaml and model_config.yaml.
    """
    from fuxictr_tf4ctr.settings.reading import SHOWN, load_settings
    from fuxictr_tf4ctr.settings.writing import as_sections, as_yaml, write_folder

    settings = load_settings(
        arguments.expid,
        arguments.config,
        parse_overrides(arguments.overrides),
        arguments.zoo,
        SHOWN,
    )
    if arguments.output is not None:
        write_folder(settings, arguments.output)
        print(f"config {arguments.output}")
        return 0
    for file, section in zip(("dataset", "model"), as_sections(settings), strict=True):
        print(f"# {file}_config.yaml\n{as_yaml(section)}", end="")
    return 0


def _listed(what: str, arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Return names and descriptions of what there is."""
    from fuxictr_tf4ctr import twin
    from fuxictr_tf4ctr.registry import describe_models
    from fuxictr_tf4ctr.settings.reading import list_datasets, list_expids

    if what == "models":
        return describe_models(arguments.zoo)
    if what == "datasets":
        return list_datasets(arguments.config)
    if what == "expids":
        sections = list_expids(arguments.config).items()
        return [(expid, f"{each['model']} on {each['dataset_id']}") for expid, each in sections]
    parts = getattr(twin, what.upper())
    return [(name, (cls.__doc__ or "").split("\n")[0]) for name, cls in sorted(parts.items())]
