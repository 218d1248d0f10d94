"""How raw rows become the model's inputs, in JSON that the scoring script follows."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fuxictr_tf4ctr.datasets.fitted import read_encoder
from fuxictr_tf4ctr.errors import DataError
from fuxictr_tf4ctr.runs.loading import LoadedRun
from fuxictr_tf4ctr.serving.export.score import FEATURES_FORMAT


def describe_features(run: LoadedRun) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    """Describe the columns the model of a run reads.

    Returns:
        The content of features.json: separator and columns, in the order of the model's inputs;
        and that of vocabularies.json: column -> token -> id, numbers written as texts.

    Raises:
        DataError: The run keeps no fitted encoder, or a column has no description without code.
    """
    content = read_encoder(run.record.schema_folder)
    declared = {column["name"]: column for column in content["features"]}
    columns, vocabularies = [], {}
    for name, spec in run.feature_map.features.items():
        if spec["type"] == "meta":
            continue
        column = _shared(declared[name], content)
        if "boundaries" in spec:
            column |= {"type": "quantile_bucket", "boundaries": spec["boundaries"]}
        elif spec.get("category_processor"):
            if column["dtype"] == "float":
                raise DataError(f"column {name!r}: hash buckets of floats cannot be exported")
            column |= {"type": "hash_bucket", "buckets": spec["vocab_size"]}
        elif spec["type"] == "numeric":
            column |= {"type": "numeric"} | _normalization(declared[name], content)
        elif spec["type"] == "embedding":
            column |= {"type": "embedding", "width": spec["pretrain_dim"]}
        else:
            tokenizer = content["tokenizers"][name]
            vocabulary = _own_kind(tokenizer["vocab"], column["dtype"])
            owner = spec.get("share_embedding", name)
            if vocabularies.get(owner) != vocabulary:
                owner = name
                vocabularies[name] = vocabulary
            column |= {"type": spec["type"], "vocabulary": owner}
            column["oov"] = tokenizer["vocab"]["__OOV__"]
            if spec["type"] == "sequence":
                column |= {key: tokenizer[key] for key in ("splitter", "padding", "missing")}
                column["max_len"] = spec["max_len"]
        columns.append(column)
    separator = content["reading"]["sep"]
    return {"format": FEATURES_FORMAT, "separator": separator, "columns": columns}, vocabularies


def _shared(declared: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what every kind of column has: name, dtype, what stands for missing, source."""
    name, dtype = declared["name"], declared["dtype"]
    default = {"str": "", "int": 0, "float": 0.0}.get(dtype)
    column = {"name": name, "dtype": dtype, "fill": declared.get("fill_na", default)}
    preprocess = declared.get("preprocess")
    if preprocess and preprocess.startswith("copy_from("):
        source = preprocess.removeprefix("copy_from(").removesuffix(")")
        others = {each["name"]: each for each in content["features"]}
        if others.get(source, {}).get("preprocess"):
            raise DataError(
                f"column {name!r}: a copy of {source!r}, which {others[source]['preprocess']} "
                "makes, cannot be exported"
            )
        column["source"] = source
        # FuxiCTR works from the last column to the first: a later one is filled when it is copied.
        if source in others and list(others).index(source) > list(others).index(name):
            column["fill"] = others[source].get("fill_na", default)
    elif preprocess:
        column["preprocess"] = preprocess
    return column


def _normalization(declared: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    statistics = content["normalizers"].get(declared["name"])
    if statistics is None:
        return {}
    if declared["normalizer"] == "StandardScaler":
        return {"subtract": statistics["mean"], "divide": statistics["std"] or 1.0}
    width = (statistics["max"] - statistics["min"]) or 1.0
    # As scikit-learn computes it: x times a scale plus an offset.
    return {"multiply": float(np.float64(1.0) / width), "add": -statistics["min"] / width}


def _own_kind(vocabulary: Mapping[Any, int], dtype: str) -> dict[str, int]:
    """Leave out tokens a column of this type never holds: a shared vocabulary may have both."""
    texts = dtype == "str"
    return {str(token): i for token, i in vocabulary.items() if isinstance(token, str) == texts}
