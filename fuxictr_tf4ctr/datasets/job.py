"""What an encoding is made of: the raw files and the settings, checked before any row is read."""

import copy
import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fuxictr
from fuxictr.preprocess import FeatureProcessor

from fuxictr_tf4ctr.datasets import manifest
from fuxictr_tf4ctr.datasets.feature_specs import complete_columns, label_entries
from fuxictr_tf4ctr.datasets.fitting import counting_processor, replaced_methods
from fuxictr_tf4ctr.datasets.raw import SUFFIXES
from fuxictr_tf4ctr.datasets.stored import COMPRESSIONS
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.schema import ANYTHING, TEXT, Key, Kind, Record, is_number, one_of, whole

if TYPE_CHECKING:
    from fuxictr_tf4ctr.datasets.new_rows import Ancestor

# FuxiCTR's processor classes for known data sets.
_FUXICTRS_PROCESSORS = tuple(f"fuxictr.datasets.{name}" for name in ("avazu", "criteo", "kkbox"))
SPLITS = ("train", "valid", "test")
SPLIT_TYPES = ("sequential", "random", "time", "group")


def _is_format(value: Any) -> bool:
    if value == "tfrecord":
        raise SettingsError(
            "tfrecord is TensorFlow's, which neither this package nor FuxiCTR's PyTorch models "
            f"read; give one of {', '.join(FORMATS)}"
        )
    return isinstance(value, str) and value in FORMATS


FORMATS = ("csv", "parquet", "npz", "h5")
DATA_FORMAT = Kind(f"one of {', '.join(FORMATS)}", _is_format)
SEPARATOR = Kind(
    "a single character of ASCII",
    lambda value: isinstance(value, str) and len(value.encode()) == 1,
)
_SIZE = Kind(
    "a share below 1 or a whole number of rows",
    lambda value: is_number(value) and value >= 0 and (value < 1 or value == int(value)),
)
ENCODING_KEYS: dict[str, Key] = {
    "min_categr_count": Key(whole(1), "Rarer values of a categorical column become OOV", 1),
    "num_buckets": Key(whole(2), "Buckets of quantile and hash bucketing", 10),
    "sep": Key(SEPARATOR, "Separator of csv files", ","),
    "n_rows": Key(whole(1), "Rows read of each file, null for all"),
    "valid_size": Key(_SIZE, "Validation share split off the training data", 0),
    "test_size": Key(_SIZE, "Test share split off the training data", 0),
    "split_type": Key(
        one_of(*SPLIT_TYPES),
        "Which rows are split off: the last, random ones, the latest or whole groups of split_by",
        "sequential",
    ),
    "split_by": Key(TEXT, "Column of split_type time or group"),
    "compression": Key(one_of(*COMPRESSIONS), "Of the encoded files: lzf is quick, gzip small"),
}
"""How raw files are encoded: keys of a data set's section."""

# Raised when the same sources and settings would encode to other files than before.
_ENCODER = 2


@dataclass(frozen=True)
class EncodingJob:
    """What to encode, from which files, with which settings; all checked.

    Attributes:
        dataset_id: Name of the data set.
        data_dir: Where the encoding goes.
        processor_class: FuxiCTR's FeatureProcessor or a subclass.
        features: Feature columns, one entry each.
        labels: Label columns, one entry each.
        patterns: Split -> its raw file, folder of files, or glob pattern.
        files: Split -> the files meant by it.
        reading: Keyword arguments of the processor's ``read_data``.
        min_categr_count: How often a token must occur to get an id.
        num_buckets: Buckets of a category_processor where the column does not say.
        splitting: ``sizes`` to split off the training rows, ``split_type``, and the column to
            ``split_by``, if any; empty where every split has its own files.
        compression: Of the h5 files, None for none.
        made_from: ``sources`` and ``settings``, for the manifest.
        ancestor: The run whose vocabularies are grown, if any.
    """

    dataset_id: str
    data_dir: Path
    processor_class: type[FeatureProcessor]
    features: list[dict[str, Any]]
    labels: list[dict[str, Any]]
    patterns: dict[str, str]
    files: dict[str, list[str]]
    reading: dict[str, Any]
    min_categr_count: int
    num_buckets: int
    splitting: dict[str, Any]
    compression: str | None
    made_from: dict[str, Any]
    ancestor: "Ancestor | None" = None

    def splits(self) -> list[str]:
        """List the splits the encoding will have."""
        sizes = self.splitting.get("sizes", {})
        return [split for split in SPLITS if split in self.patterns or split in sizes]

    def pattern(self, split: str) -> str:
        """Return where the rows of a split come from."""
        return self.patterns[split if split in self.patterns else "train"]

    def processor(self, folder: Path) -> FeatureProcessor:
        """Make a processor that fits from counts.

        Args:
            folder: What FuxiCTR calls ``data_root``.
        """
        return counting_processor(
            self.processor_class,
            # FuxiCTR keeps and may change what it is given; the manifest tells what was asked.
            feature_cols=copy.deepcopy(self.features),
            label_col=copy.deepcopy(self.labels),
            dataset_id=self.dataset_id,
            data_root=str(folder),
        )

    def of_file(self, split: str, file: str) -> "EncodingJob":
        """Return the part of the encoding that reads one file of a split."""
        return replace(self, patterns={split: file}, files={split: [file]})

    def file_names(self) -> list[str]:
        """List the files the encoding will consist of."""
        pretrained = [
            f"pretrained_{column['name']}{Path(column['pretrained_emb']).suffix}"
            for column in self.features
            if "pretrained_emb" in column
        ]
        splits = [f"{split}.h5" for split in self.splits()]
        return ["feature_map.json", "feature_vocab.json", "encoder.json", *pretrained, *splits]


def plan_encoding(
    params: Mapping[str, Any],
    data_dir: Path,
    sources: Mapping[str, str | Path],
    ancestor: "Ancestor | None" = None,
) -> EncodingJob:
    """Check the settings and the raw files of an encoding.

    Args:
        sources: Split -> file, folder of files, or glob pattern.
        ancestor: The run whose vocabularies are to be grown, if any.

    Raises:
        SettingsError: A setting is missing or not valid, or the ancestor has other columns.
        DataError: A file is missing, empty or of another format.
    """
    features, labels = complete_columns(
        params.get("feature_cols"), label_entries(params), params.get("feature_processor")
    )
    processor_class = find_processor_class(params.get("feature_processor"))
    for column in features + labels:
        check_preprocess(column, processor_class)
    problems = Record(ENCODING_KEYS, others=ANYTHING).problems(params)
    if problems := problems or splitting_problems(params):
        raise SettingsError("\n".join(problems))
    options = {name: params.get(name, key.default) for name, key in ENCODING_KEYS.items()}
    reading = {
        "data_format": params.get("data_format", "csv"),
        **{name: options[name] for name in ("sep", "n_rows")},
    }
    sizes = {s: options[f"{s}_size"] for s in ("valid", "test") if options[f"{s}_size"]}
    how = {key: options[key] for key in ("split_type", "split_by") if options[key] is not None}
    splitting = {"sizes": sizes, **how} if sizes else {}
    files = {split: raw_files(path, reading["data_format"]) for split, path in sources.items()}
    described = {f"{split}_data": manifest.describe_files(paths) for split, paths in files.items()}
    for name, paths in _pretrained_files(features).items():
        described[name] = manifest.describe_files(paths)
    settings = {
        "compression": options["compression"],
        "dataset_id": str(params["dataset_id"]),
        "encoder": _ENCODER,
        "feature_cols": features,
        "label_col": labels,
        "feature_processor": describe_class(processor_class),
        "fuxictr": fuxictr.__version__,
        "min_categr_count": options["min_categr_count"],
        "num_buckets": options["num_buckets"],
        "splitting": splitting,
        **reading,
    }
    if ancestor is not None:
        ancestor.check(features, options["num_buckets"])
        for group, more in zip((described, settings), ancestor.made_from(), strict=True):
            group |= more
    return EncodingJob(
        dataset_id=str(params["dataset_id"]),
        data_dir=data_dir,
        processor_class=processor_class,
        features=features,
        labels=labels,
        patterns={split: str(path) for split, path in sources.items()},
        files=files,
        reading=reading,
        min_categr_count=options["min_categr_count"],
        num_buckets=options["num_buckets"],
        splitting=splitting,
        compression=options["compression"],
        made_from={"sources": described, "settings": as_json(settings)},
        ancestor=ancestor,
    )


def splitting_problems(params: Mapping[str, Any]) -> list[str]:
    """List what does not go together in the keys that split rows off."""
    problems = [
        f"{split}_size and {split}_data are both given; give one"
        for split in ("valid", "test")
        if params.get(f"{split}_size") and params.get(f"{split}_data")
    ]
    split_type, split_by = params.get("split_type", "sequential"), params.get("split_by")
    if (split_by is None) == (split_type in ("time", "group")):
        problems.append(
            f"split_type: {split_type} with split_by: {split_by}: time and group need the column "
            "to split_by, others take none"
        )
    elif split_type != "sequential" and not (params.get("valid_size") or params.get("test_size")):
        problems.append(
            f"split_type: {split_type} splits nothing off: give valid_size or test_size, or leave "
            "it out"
        )
    return problems


def as_json(settings: Any) -> Any:
    """Give settings the form they have when read back, dates and tuples included."""
    return json.loads(json.dumps(settings, default=str))


def find_processor_class(name: str | None) -> type[FeatureProcessor]:
    """Return the processor class a ``feature_processor`` names, FuxiCTR's own for None.

    Raises:
        SettingsError: It cannot be imported, or replaces what encoding does itself.
    """
    if name is None:
        return FeatureProcessor
    module_name, _, class_name = str(name).partition(":")
    try:
        module = importlib.import_module(module_name)
        processor_class = getattr(module, class_name or "CustomizedFeatureProcessor")
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"feature_processor {name!r} cannot be imported ({error}); name a module with a "
            "CustomizedFeatureProcessor, or module:Class"
        ) from error
    if not (isinstance(processor_class, type) and issubclass(processor_class, FeatureProcessor)):
        raise SettingsError(f"feature_processor {name!r} is no subclass of FeatureProcessor")
    replaced = replaced_methods(processor_class)
    if replaced:
        raise SettingsError(
            f"feature_processor {name!r} overrides {', '.join(replaced)}, which encoding to h5 "
            "does itself; only preprocess functions, preprocess and read_data can be changed"
        )
    return processor_class


def describe_class(processor_class: type) -> str:
    """Name a class so that a change of its module's code shows, and of its bases' modules'."""
    bases = [base for base in processor_class.__mro__ if not issubclass(FeatureProcessor, base)]
    files = dict.fromkeys(map(inspect.getfile, bases or [processor_class]))  # each once, in order
    source = b"".join(Path(file).read_bytes() for file in files)
    digest = hashlib.sha256(source).hexdigest()[:16]
    return f"{processor_class.__module__}:{processor_class.__qualname__} {digest}"


def check_preprocess(column: Mapping[str, Any], processor_class: type[FeatureProcessor]) -> None:
    """Refuse a function the processor lacks, and its methods that are no preprocessing at all."""
    if not column.get("preprocess"):
        return
    name = re.split(r"[()]", str(column["preprocess"]))[0]
    known = {"copy_from"} | _preprocess_functions(processor_class)
    if name not in known:
        for module in _FUXICTRS_PROCESSORS:
            if name in _preprocess_functions(find_processor_class(module)):
                raise SettingsError(
                    f"column {column['name']!r}: preprocess function {name!r} is of FuxiCTR's "
                    f"processor for this data set: set feature_processor: {module}"
                )
        problem = unknown("preprocess function", name, known)
        raise SettingsError(
            f"column {column['name']!r}: {problem} (feature_processor "
            f"{processor_class.__module__}:{processor_class.__qualname__})"
        )


def _preprocess_functions(processor_class: type[FeatureProcessor]) -> set[str]:
    return {
        method
        for method in dir(processor_class)
        if not method.startswith("_") and not hasattr(FeatureProcessor, method)
    }


def raw_files(path: str | Path, data_format: str) -> list[str]:
    """List the files meant by a path: a file, a folder of files, or a pattern.

    Raises:
        DataError: There is none, or one is empty, of another format, or there twice.
    """
    suffixes = SUFFIXES[data_format]
    expected = " or ".join(suffixes)
    if Path(path).exists() and has_magic(str(path)):
        raise DataError(f"{path}: *, ? and [ in a path are read as a pattern; rename it")
    if Path(path).is_dir():
        files = sorted(str(file) for file in Path(path).iterdir() if file.name.endswith(suffixes))
    else:
        files = sorted(glob(str(path)))
    if not files:
        raise DataError(f"{path}: no such file, or a folder without a *{suffixes[0]} file")
    for file in files:
        if not file.endswith(suffixes):
            raise DataError(
                f"{file}: data_format is {data_format}, so its name must end {expected}"
            )
        if Path(file).stat().st_size == 0:
            raise DataError(f"{file}: the file is empty")
        if f"{file}.gz" in files:
            raise DataError(f"{file}: is there gzipped as well; rows would count twice, move one")
    return files


def _pretrained_files(features: list[dict[str, Any]]) -> dict[str, list[str]]:
    files = {}
    for column in features:
        if "pretrained_emb" in column:
            path = str(column["pretrained_emb"])
            if not Path(path).is_file():
                raise DataError(f"{path}: no such file (pretrained_emb of {column['name']!r})")
            files[f"pretrained_emb of {column['name']}"] = [path]
    return files
