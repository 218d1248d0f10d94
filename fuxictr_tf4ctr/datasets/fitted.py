"""``encoder.json``: the fitted encoder, so that rows which come later get the same ids and numbers.

FuxiCTR keeps its fitted processor in a pickle, which runs code when loaded. Here feature_map.json
and feature_vocab.json hold what they hold in FuxiCTR, and this file the rest: the columns as the
data set's section declares them, statistics of the numbers, types of the tokens.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.preprocess import FeatureProcessor

from fuxictr_tf4ctr.datasets.feature_map import VOCABULARIES
from fuxictr_tf4ctr.datasets.feature_specs import complete_columns
from fuxictr_tf4ctr.datasets.fitting import Normalizer, Tokenizer
from fuxictr_tf4ctr.datasets.job import (
    EncodingJob,
    check_preprocess,
    describe_class,
    find_processor_class,
)
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.schema import (
    ANYTHING,
    NUMBER,
    TEXT,
    Key,
    Kind,
    ListOf,
    Record,
    is_whole,
    one_of,
    read_json,
    whole,
)

NAME = "encoder.json"
_FORMAT = "fuxictr_tf4ctr encoder 1"
_SPECIAL = ("__PAD__", "__OOV__")


def _is_vocabulary(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(token, str | int | float) and is_whole(i) for token, i in value
    )


# How feature_vocab.json, whose keys are texts, gives a vocabulary's tokens back.
_TOKEN_TYPES = {"text": str, "int": int, "float": float}
_TOKENIZER = Record(
    {
        "missing": Key(
            Kind("a text or a number", lambda value: isinstance(value, str | int | float))
        ),
        "splitter": Key(TEXT),
        "max_len": whole(0, 2**16),
        "padding": one_of("pre", "post"),
        "tokens": Key(one_of(*_TOKEN_TYPES)),
        "vocab": Key(Kind("a list of tokens and their ids", _is_vocabulary)),
    }
)
_MOMENTS = Record(dict.fromkeys(("min", "max", "mean", "std", "count"), NUMBER))
_SEPARATOR = Kind(
    "one character of ASCII", lambda value: isinstance(value, str) and len(value.encode()) == 1
)
_ENCODER = Record(
    {
        "format": one_of(_FORMAT),
        "dataset_id": TEXT,
        "feature_processor": TEXT,
        "reading": Record({"data_format": TEXT, "sep": _SEPARATOR}),
        "features": ListOf(Record({}, others=ANYTHING), least=1),
        "labels": ListOf(Record({}, others=ANYTHING)),
        "normalizers": Record({}, others=_MOMENTS),
        "tokenizers": Record({}, others=_TOKENIZER),
    }
)


def save_encoder(processor: FeatureProcessor, job: EncodingJob) -> None:
    """Write what was fitted beside the processor's feature map.

    Args:
        processor: Fitted from ``processor.statistics``.
        job: What it was fitted for.
    """
    specs = processor.feature_map.features
    content = {
        "format": _FORMAT,
        "dataset_id": processor.feature_map.dataset_id,
        "feature_processor": describe_class(job.processor_class),
        "reading": {key: job.reading[key] for key in ("data_format", "sep")},
        "features": job.features,
        "labels": job.labels,
        "normalizers": {
            name: processor.statistics[name]
            for name in specs
            if f"{name}::normalizer" in processor.processor_dict
        },
        "tokenizers": {
            name: _describe_tokenizer(tokenizer, in_vocab=specs[name]["type"] != "meta")
            for name in specs
            if (tokenizer := processor.processor_dict.get(f"{name}::tokenizer")) is not None
            and tokenizer.vocab
        },
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    (Path(processor.data_dir) / NAME).write_text(text + "\n", encoding="utf-8")


def _describe_tokenizer(tokenizer: Tokenizer, in_vocab: bool) -> dict[str, Any]:
    described = {
        "missing": tokenizer._na_value,
        "splitter": tokenizer._splitter,
        "max_len": tokenizer.max_len,
        "padding": tokenizer.padding,
    }
    types = {type(token) for token in tokenizer.vocab if token not in _SPECIAL}
    for name, token_type in _TOKEN_TYPES.items():
        if in_vocab and types <= {token_type}:
            return described | {"tokens": name}
    return described | {"vocab": list(tokenizer.vocab.items())}


def read_encoder(folder: Path) -> dict[str, Any]:
    """Read ``encoder.json``, with the vocabulary of every tokenizer in ``vocab``.

    Returns:
        The content of the file; ``features`` and ``labels`` are checked and complete.

    Raises:
        DataError: There is none, or none of this version.
        SettingsError: It was changed to something the encoder must not run.
    """
    path = folder / NAME
    remedy = "it was not written by this version; encode from csv or parquet, and train again"
    try:
        content = read_json(path, _ENCODER, remedy)
        texts = read_json(folder / "feature_vocab.json", VOCABULARIES, remedy)
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename}: missing, so new rows cannot be encoded: the data were encoded by "
            "FuxiCTR or by an earlier version; encode them from csv or parquet, and train again"
        ) from None
    for name, tokenizer in content["tokenizers"].items():
        try:
            tokenizer["vocab"] = _vocab(tokenizer, texts.get(name, {}))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: tokenizers.{name}: {error}; {remedy}") from error
    content["features"], content["labels"] = complete_columns(
        content["features"], content["labels"]
    )
    return content


def _vocab(tokenizer: Mapping[str, Any], texts: Mapping[str, int]) -> dict[Any, int]:
    if tokenizer.get("vocab") is not None:
        vocab = {token: i for token, i in tokenizer["vocab"]}
    elif tokenizer.get("tokens") is None:
        raise ValueError("tokens is missing, or vocab")
    else:
        restored = _TOKEN_TYPES[tokenizer["tokens"]]
        vocab = {token if token in _SPECIAL else restored(token): i for token, i in texts.items()}
    absent = [token for token in _SPECIAL if token not in vocab]
    if absent:
        raise ValueError(f"its vocabulary lacks {' and '.join(absent)}")
    return vocab


def restored_processor(
    content: Mapping[str, Any], feature_map: FeatureMap, *, labels: bool = False
) -> FeatureProcessor:
    """Restore the processor an encoding was made with.

    Args:
        content: As :func:`read_encoder` returned it.
        feature_map: The features to encode.
        labels: Whether the rows have labels.

    Raises:
        SettingsError: The data set's own processor class is gone or has changed.
    """
    processor_class = _processor_class(content["feature_processor"])
    features, label_columns = content["features"], content["labels"]
    for column in features + label_columns:
        check_preprocess(column, processor_class)
    if not any(column.get("preprocess") for column in features + label_columns):
        # Without functions that may read any column, those the model leaves out may be missing.
        features = [column for column in features if column["name"] in feature_map.features]
    fitted = {column["name"]: column for column in features}
    for name, spec in feature_map.features.items():
        if fitted.get(name, {}).get("type") != spec["type"]:
            raise DataError(f"{NAME} and feature_map.json disagree on {name!r}; encode again")
    processor = processor_class(
        feature_cols=copy.deepcopy(features),
        label_col=copy.deepcopy(label_columns) if labels else [],
        dataset_id=content["dataset_id"],
    )
    processor.feature_map = feature_map
    for column in features:
        statistics = content["normalizers"].get(column["name"])
        if statistics is not None:
            normalizer = _normalizer(column["normalizer"], statistics)
            processor.processor_dict[f"{column['name']}::normalizer"] = normalizer
    for name, described in content["tokenizers"].items():
        processor.processor_dict[f"{name}::tokenizer"] = _tokenizer(described)
    return processor


def _processor_class(described: str) -> type[FeatureProcessor]:
    name = described.split()[0]
    found = find_processor_class(name)
    # FuxiCTR's own fills missing values, no more; another one computes what the model reads.
    if found is not FeatureProcessor and describe_class(found) != described:
        raise SettingsError(
            f"feature_processor {name} has changed since the run's data were encoded; restore its "
            "code, or encode and train again"
        )
    return found


def _normalizer(name: str, statistics: Mapping[str, float]) -> Normalizer:
    normalizer = Normalizer(name)
    normalizer.fit_from_stats(
        min_value=statistics["min"],
        max_value=statistics["max"],
        **{key: statistics[key] for key in ("mean", "std", "count")},
    )
    return normalizer


def _tokenizer(described: Mapping[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer(
        na_value=described.get("missing"),
        splitter=described.get("splitter"),
        max_len=described["max_len"],
        padding=described["padding"],
    )
    tokenizer.vocab = dict(described["vocab"])
    return tokenizer
