"""Configuration written: an experiment whole, in FuxiCTR's form; a folder for one's own data."""

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from fuxictr_tf4ctr import files
from fuxictr_tf4ctr.datasets.csv_files import CsvFile
from fuxictr_tf4ctr.datasets.guessing import ColumnGuess, guess_columns
from fuxictr_tf4ctr.datasets.job import SPLIT_TYPES, SPLITS, raw_files
from fuxictr_tf4ctr.datasets.raw import (
    SUFFIXES,
    RawFiles,
    labels_as_numbers,
    polars_errors,
    separator_of,
)
from fuxictr_tf4ctr.datasets.splits import as_times
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.names import shown, unknown
from fuxictr_tf4ctr.settings.keys import DATASET_KEYS
from fuxictr_tf4ctr.settings.reading import Settings, load_settings
from fuxictr_tf4ctr.settings.resolver import Experiments
from fuxictr_tf4ctr.twin.two_stream import TwoStreamModel

Section = dict[str, dict[str, Any]]


def as_sections(settings: Settings) -> tuple[Section, Section]:
    """Return what ``dataset_config.yaml`` and ``model_config.yaml`` hold of an experiment.

    Nothing is left to be inherited or to be a default: keys of this package, of the model's class
    and of FuxiCTR are all there. Paths of data that was found are absolute.
    """
    params = _with_defaults_of_the_class(settings)
    params.pop("model_id", None)  # FuxiCTR sets it to the expid
    dataset_id = params["dataset_id"]
    of_data = {key: params.pop(key) for key in DATASET_KEYS if key in params}
    del of_data["dataset_id"]
    for key in ("train_data", "valid_data", "test_data"):
        path = Path(of_data.get(key) or "")
        for base in (settings.config_dir.parent, Path.cwd()):
            if path.is_relative_to(base) and not path.exists():
                of_data[key] = str(path.relative_to(base))  # as it was written
    model = {"model": params.pop("model"), "dataset_id": dataset_id} | params
    return {dataset_id: _plain(of_data)}, {settings.expid: _plain(model)}


def as_yaml(section: Section) -> str:
    """Write sections as FuxiCTR's files do."""
    return yaml.safe_dump(
        section, sort_keys=False, default_flow_style=None, indent=2, allow_unicode=True
    )


def write_folder(settings: Settings, folder: Path) -> None:
    """Write a configuration folder with this experiment alone, to run here or under FuxiCTR.

    Raises:
        SettingsError: There is something of that name.
    """
    if folder.exists():
        raise SettingsError(f"--output {folder} is there already: name a folder that is not")
    dataset, model = as_sections(settings)
    with files.whole_folder(folder) as path:
        (path / "dataset_config.yaml").write_text(as_yaml(dataset), encoding="utf-8")
        (path / "model_config.yaml").write_text(as_yaml(model), encoding="utf-8")


def _with_defaults_of_the_class(settings: Settings) -> dict[str, Any]:
    params = dict(settings.params)
    if issubclass(settings.model_class, TwoStreamModel):
        return settings.model_class.complete(params)
    takes = inspect.signature(settings.model_class.__init__).parameters.values()
    known = (str, int, float, list, tuple, dict)
    return {p.name: p.default for p in takes if isinstance(p.default, known)} | params


def _plain(section: dict[str, Any]) -> dict[str, Any]:
    """Turn tuples into the lists that YAML has."""
    return json.loads(json.dumps(section))


_SAMPLE_ROWS = 100_000
# What is split off where there is one file, as shares of its rows.
_SHARE = 0.1
# Some hundred steps an epoch, whatever the number of rows.
_STEPS, _LEAST, _MOST = 100, 16, 4096
_SMALL, _LARGE = 50_000, 1_000_000
# Words for what is to be predicted, and for what is not.
_POSITIVE = {"yes": "no", "y": "n", "true": "false", "t": "f", "1": "-1"}
_SMALL_LAYERS = {"simple_hidden_units": [64], "complex_hidden_units": [128, 64]}


def sized_to(rows: int) -> dict[str, Any]:
    """Return settings of any model that suit a number of training rows."""
    return {
        "embedding_dim": 8 if rows < _SMALL else 16,
        "batch_size": min(max(rows // _STEPS, _LEAST), _MOST),
        "epochs": 10 if rows < _LARGE else 3,
        **({"encoder_options": _SMALL_LAYERS} if rows < _SMALL else {}),
    }


@dataclass(frozen=True)
class Start:
    """What was found, and made of it.

    Attributes:
        folder: The configuration folder.
        expid: The experiment in it.
        rows: Rows of the training data, before any are split off.
        columns: What the columns seem to be, the label left out.
        label: Its column, and what stands for 1 if not 1.
        split: How rows come to be for validation and test.
    """

    folder: Path
    expid: str
    rows: int
    columns: list[ColumnGuess]
    label: dict[str, Any]
    split: str

    @property
    def times(self) -> list[str]:
        """Columns by whose time the rows could be split."""
        return [each.name for each in self.columns if each.kind == "time" and each.distinct > 2]


def start_config(
    data: Path, label: str, output: Path | None = None, model: str = "TF4CTR", split: str = "random"
) -> Start:
    """Write a configuration folder for csv or parquet files.

    Args:
        data: A file, or a folder with train and, perhaps, valid and test, each a file or a folder.
        label: Column to predict, 0 or 1, or COLUMN=VALUE for the value to predict.
        output: Folder to write; None names it after the data.
        model: Model of the experiment.
        split: How validation and test rows are split off where they have no files: random,
            sequential (the last rows), time:COLUMN (the latest) or group:COLUMN.

    Raises:
        SettingsError: A column is not there, the model is unknown, or ``output`` is there already.
        DataError: A file cannot be read, or the label or times are none.
    """
    sources = _sources(data)
    dataset_id = re.sub(r"\W", "_", data.resolve().name.split(".")[0])
    folder = Path(f"{dataset_id}_config") if output is None else output
    if folder.exists():
        raise SettingsError(f"--output {folder} is there already: name a folder that is not")
    table = _Table(sources["train"])
    name, _, value = label.rpartition("=")
    label, positive = (label, None) if label in table.columns or not name else (name, value)
    if label not in table.columns:
        raise SettingsError(f"--label: {unknown('column', label, table.columns)}")
    rows, label_col = table.checked_rows(label, positive)
    sample = table.sample()
    labels = labels_as_numbers(sample, [label_col])[label].cast(pl.Float64)
    columns = guess_columns(sample.drop(label), labels if labels.n_unique() > 1 else None)
    entries = [each.entry for each in columns if not each.useless]
    if not entries:
        raise DataError(f"{sources['train']}: no column is left to learn from")
    for source in sources.values():
        there = _Table(source).columns
        for name in [label, *(entry["name"] for entry in entries)]:
            if name not in there:
                raise DataError(f"{source}: {unknown('column', name, there)}")
    splitting = _splitting(sources, split, sample)
    dataset = {
        "data_root": "./data/",
        **table.reading,
        **{f"{part}_data": str(source) for part, source in sources.items()},
        **splitting,
        "min_categr_count": 2,
        "feature_cols": _grouped(entries),
        "label_col": label_col,
    }
    training_rows = rows * (1 - sum(splitting.get(f"{part}_size", 0) for part in SPLITS))
    datasets = {dataset_id: dataset}
    experiments = {dataset_id: {"dataset_id": dataset_id, **sized_to(int(training_rows))}}
    expid = f"{model}_{dataset_id}"
    if expid not in Experiments(experiments, datasets, folder):  # no twin, nor a twin's base model
        experiments[expid] = {"inherits": dataset_id, "model": model}
    left_out = [f"{each.name}: {each.useless}" for each in columns if each.useless]
    with files.whole_folder(folder) as made:
        _write(made / "dataset_config.yaml", datasets, ["Left out:", *left_out] if left_out else [])
        hint = f"<Model>_{dataset_id} is an experiment of any twin and its base model."
        _write(made / "model_config.yaml", experiments, [hint])
        load_settings(expid, made)
    how = ", ".join(f"{key}: {value}" for key, value in splitting.items()) or ", ".join(sources)
    return Start(folder, expid, rows, columns, label_col, how)


class _Table:
    """The raw files of one split, all texts as they are written.

    Attributes:
        reading: ``data_format``, and ``sep`` where it is not the comma.
        columns: Column -> its type.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        found = [kind for kind in SUFFIXES if _holds(path, kind)]
        self.reading = {"data_format": (found or ["csv"])[0]}
        names = raw_files(path, self.reading["data_format"])
        declared: dict[str, pl.DataType] = {}
        separator = ","
        if self.reading["data_format"] == "csv":
            separator = _guessed_separator(Path(names[0]))
            self.reading |= {"sep": separator} if separator != "," else {}
            header = CsvFile(Path(names[0]), separator_of(Path(names[0]), separator), {}).schema
            _refuse_values(names[0], list(header))
            declared = dict.fromkeys(header, pl.String)
        self._files = RawFiles(names, separator, declared=declared)
        with polars_errors(path, self._files):
            self._frame = self._files.frame()
            self.columns = self._frame.collect_schema()

    def sample(self) -> pl.DataFrame:
        """Read the first rows."""
        return self._read(self._frame.head(_SAMPLE_ROWS))

    def checked_rows(self, label: str, positive: str | None) -> tuple[int, dict[str, Any]]:
        """Count the rows, and find labels that none can be learned from.

        Args:
            positive: What stands for 1 in it; None finds it among words such as yes and no.

        Returns:
            The rows, and the label's entry in the data set's section.

        Raises:
            DataError: A label is not 0 or 1, or all are the same.
        """
        counts = self._read(self._frame.group_by(label).len())
        entry = {"name": label, "dtype": "float"}
        if positive is None and not _are_labels(counts[label]):
            positive = _positive_of(counts[label])
        if positive is not None:
            entry["positive"] = positive
        with polars_errors(self._path):
            numbers = labels_as_numbers(counts, [entry])[label]
        if not _are_labels(numbers):
            there = [shown(value) for value in counts[label].head(5)]
            raise DataError(
                f"{self._path}: label {label!r} holds {', '.join(there)}: write 0 and 1 for what "
                f"is not and what is to be predicted, or --label {label}=VALUE for what is"
            )
        if numbers.cast(pl.Float64).n_unique() < 2:
            what = repr(label) if positive is None else f"{label!r}, 1 for {positive!r}"
            rows = counts["len"].sum()
            there = f"all {rows} are {int(numbers[0])}" if rows else "no rows"
            raise DataError(f"{self._path}: label {what}: {there}; both 0 and 1 are needed")
        return int(counts["len"].sum()), entry

    def _read(self, frame: pl.LazyFrame) -> pl.DataFrame:
        with polars_errors(self._path, self._files):
            return frame.collect(engine="streaming")


def _are_labels(values: pl.Series) -> bool:
    try:
        numbers = values.cast(pl.Float64, strict=False)
    except pl.exceptions.PolarsError:  # of lists, or bytes
        return False
    return not numbers.null_count() and numbers.is_in([0.0, 1.0]).all()


def _positive_of(values: pl.Series) -> str | None:
    """Return which of two values is the word for what is to be predicted, if one is."""
    if len(values) != 2 or not (values.dtype == pl.String or values.dtype.is_integer()):
        return None
    texts = values.cast(pl.String).fill_null("").to_list()
    pairs = zip(texts, reversed(texts), strict=True)
    return next((p for p, other in pairs if _POSITIVE.get(p.lower()) == other.lower()), None)


def _sources(data: Path) -> dict[str, Path]:
    """Return split -> its file or folder."""
    if not data.is_dir():
        return {"train": data}
    found = {split: _part(data, split) for split in SPLITS}
    sources = {split: path for split, path in found.items() if path is not None}
    return sources if "train" in sources else {"train": data}


def _part(folder: Path, split: str) -> Path | None:
    names = ["", *(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)]
    paths = (folder / f"{split}{suffix}" for suffix in names)
    return next((path for path in paths if path.exists()), None)


def _holds(path: Path, data_format: str) -> bool:
    names = [each.name for each in path.iterdir()] if path.is_dir() else [path.name]
    return any(name.endswith(SUFFIXES[data_format]) for name in names)


def _guessed_separator(file: Path) -> str:
    """Return what the header line has most of: a comma, which is a tab in .tsv, or another."""
    if ".tsv" in file.suffixes:
        return ","
    header = ",".join(CsvFile(file, "\0", {}).schema)
    return max(",;\t|", key=header.count)


def _refuse_values(file: str, header: list[str]) -> None:
    number = re.compile(r"-?\d+(\.\d*)?")
    values = [name for name in header if not name.isprintable() or number.fullmatch(name or "0")]
    if values:
        raise DataError(
            f"{file}: line 1 holds values such as {values[0]!r}, not the names of the columns: "
            "write a header line first"
        )


def _splitting(sources: Mapping[str, Path], split: str, sample: pl.DataFrame) -> dict[str, Any]:
    """Return the keys that split rows off, and find a column by which that is not possible."""
    if "valid" in sources:
        return {}
    parts = [part for part in ("valid", "test") if part not in sources]
    kind, _, column = split.partition(":")
    if kind not in SPLIT_TYPES or (kind in ("time", "group")) != bool(column):
        raise SettingsError(
            f"--split {split}: give random, sequential, time:COLUMN or group:COLUMN"
        )
    by = {"split_by": column} if column else {}
    if column and column not in sample.columns:
        raise SettingsError(f"--split: {unknown('column', column, sample.columns)}")
    if kind == "time":
        try:
            as_times(sample[column])
        except ValueError as error:
            raise DataError(f"--split {split}: {error}") from error
    return {f"{part}_size": _SHARE for part in parts} | {"split_type": kind} | by


def _grouped(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put columns alike into one entry, as FuxiCTR's configurations do, in their order."""
    grouped: list[dict[str, Any]] = []
    for entry in entries:
        same = {**entry, "name": grouped[-1]["name"]} if grouped else {}
        if grouped and same == grouped[-1]:
            grouped[-1]["name"].append(entry["name"])
        else:
            grouped.append({**entry, "name": [entry["name"]]})
    return grouped


def _write(file: Path, section: dict[str, dict[str, Any]], comments: list[str]) -> None:
    lines = "".join(f"# {' '.join(comment.split())}\n" for comment in comments)
    file.write_text(lines + as_yaml(section), encoding="utf-8")
