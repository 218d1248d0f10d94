"""Score csv rows with an exported model: python score.py rows.csv > scores.csv

Lies in the folder of an export, and needs numpy and, for model.onnx, onnxruntime; model.pt2 needs
torch instead. Rows are encoded as the training data were: values the vocabulary lacks get the id of
all unknown ones, missing values what stood for them. As a module:

    from score import Scorer
    scores = Scorer("folder").score([{"age": "31", "job": "student"}])["y_pred"]
"""

import argparse
import csv
import hashlib
import json
import math
import sys
import zlib
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

MANIFEST_FORMAT = "fuxictr_tf4ctr artefact 1"
FEATURES_FORMAT = "fuxictr_tf4ctr features 1"
_NUMBERS = {"int": int, "float": float}


class Scorer:
    """An exported model and the encoding of its columns.

    Args:
        folder: The folder of the export.
        preprocessed: Whether columns that training computed by a function of its own come computed.

    Raises:
        ValueError: A file is not as it was exported, or such columns are not said to be computed.
    """

    def __init__(self, folder: str | Path, preprocessed: bool = False) -> None:
        folder = Path(folder)
        self.manifest = _json(folder / "manifest.json", MANIFEST_FORMAT)
        for name, described in self.manifest["files"].items():
            if _sha256(folder / name) != described["sha256"]:
                raise ValueError(f"{folder / name}: is not as it was exported; export it again")
        features = _json(folder / "features.json", FEATURES_FORMAT)
        self.separator, columns = features["separator"], features["columns"]
        computed = [c["name"] for c in columns if "preprocess" in c]
        if computed and not preprocessed:
            raise ValueError(
                f"training computed {', '.join(computed)} from the raw values by its own code; "
                "give the computed values, and say so by --preprocessed"
            )
        vocabularies = json.loads((folder / "vocabularies.json").read_text(encoding="utf-8"))
        self.columns = [(c, _missing(c, vocabularies), _encoder(c, vocabularies)) for c in columns]
        self.outputs = [output["name"] for output in self.manifest["outputs"]]
        self._run = RUNNERS[self.manifest["kind"]](folder, self.outputs)

    def encode(self, rows: Sequence[Mapping[str, Any]], first: int = 0) -> dict[str, np.ndarray]:
        """Turn rows, each a mapping of column to text or value, into the model's inputs.

        None is a missing value, and so is an empty text that training did not know as a token.

        Raises:
            ValueError: A row lacks a column or holds what its column cannot; rows count from
                ``first``.
        """
        inputs = {}
        for column, missing, encode in self.columns:
            values, source = [], column.get("source", column["name"])
            for number, row in enumerate(rows, first):
                if source not in row:
                    raise ValueError(f"row {number}: no column {source!r}")
                value = row[source]
                try:
                    values.append(encode(column["fill"] if value in missing else value))
                except (TypeError, ValueError) as error:
                    raise ValueError(f"row {number}, column {source!r}: {error}") from error
            dtype = np.float32 if column["type"] in ("numeric", "embedding") else np.int64
            inputs[column["name"]] = np.array(values, dtype)
        return inputs

    def score(self, rows: Sequence[Mapping[str, Any]], first: int = 0) -> dict[str, np.ndarray]:
        """Score rows: a dict of y_pred and, of a twin, y_simple and y_complex, [rows] each."""
        return dict(zip(self.outputs, self._run(self.encode(rows, first)), strict=True))


def _missing(column, vocabularies):
    """Return the values that are missing: "" as well, unless it is a token of the column's own."""
    known = "vocabulary" in column and "" in vocabularies[column["vocabulary"]]
    return (None,) if known else (None, "")


def _encoder(column, vocabularies):
    """Return what turns a value of a column into its id, number or list of them."""
    kind, number = column["type"], _NUMBERS.get(column["dtype"])
    if kind == "numeric":
        return lambda value: _finite(_normalized(float(value), column))
    if kind == "embedding":
        return lambda value: _vector(value, column["width"])
    if kind == "quantile_bucket":
        return lambda value: np.searchsorted(column["boundaries"], float(value), side="right")
    if kind == "hash_bucket":
        as_text = (lambda value: str(int(value))) if number else str
        return lambda value: zlib.crc32(as_text(value).encode()) % column["buckets"]
    tokens, oov = vocabularies[column["vocabulary"]], column["oov"]
    if kind == "sequence":
        return lambda value: _sequence(value, tokens, column)
    of_type = _NUMBERS.get(column["tokens"], str)
    tokens = {of_type(token): i for token, i in tokens.items()}
    return lambda value: oov if value is None else tokens.get(of_type(value), oov)


def _normalized(value, column):
    if "divide" in column:
        return (value - column["subtract"]) / column["divide"]
    if "multiply" in column:
        return value * column["multiply"] + column["add"]
    return value


def _finite(value):
    if not math.isfinite(np.float32(value)):
        raise ValueError("is not a finite number")
    return value


def _vector(value, width):
    numbers = json.loads(value) if isinstance(value, str) else value
    if len(numbers) != width:
        raise ValueError(f"holds {len(numbers)} numbers, not {width}")
    return [_finite(float(number)) for number in numbers]


def _sequence(value, tokens, column):
    if isinstance(value, str):
        parts = value.split(column["splitter"])
    else:
        parts = [str(part) for part in value if part is not None]
    ids = [0 if part == column["missing"] else tokens.get(part, column["oov"]) for part in parts]
    length = column["max_len"]
    if column["padding"] == "post":
        return ids[:length] + [0] * (length - len(ids))
    return [0] * (length - len(ids)) + ids[-length:]


def _onnx(folder, outputs):
    import onnxruntime

    path = str(folder / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(outputs, inputs)


def _torch(folder, outputs):
    import torch

    program = torch.export.load(str(folder / "model.pt2")).module()

    def run(inputs):
        with torch.no_grad():
            scores = program(*(torch.from_numpy(column) for column in inputs.values()))
        return [column.numpy() for column in scores]

    return run


RUNNERS = {"onnx": _onnx, "torch": _torch}


def _json(path, expected):
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != expected:
        raise ValueError(f"{path}: is of format {content.get('format')!r}, not {expected!r}")
    return content


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Read csv, write the scores as csv to standard output."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("csv", help="rows with a header line; - is standard input")
    parser.add_argument("--preprocessed", action="store_true", help="computed columns are computed")
    parser.add_argument("--batch", type=int, default=1024, help="rows at a time (default: 1024)")
    options = parser.parse_args(arguments)
    try:
        scorer = Scorer(Path(__file__).resolve().parent, options.preprocessed)
        # File number 0 is standard input.
        source = 0 if options.csv == "-" else options.csv
        with open(source, encoding="utf-8-sig", newline="") as file:
            _score_csv(scorer, file, options.batch)
    except (OSError, ValueError, csv.Error) as error:
        print(f"score: {error}", file=sys.stderr)
        return 2
    return 0


def _score_csv(scorer, source, batch):
    rows = csv.DictReader(source, delimiter=scorer.separator, strict=True)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    done = 0
    while some := list(islice(rows, batch)):
        for number, row in enumerate(some, done):
            if None in row or None in row.values():
                raise ValueError(f"row {number}: has not as many fields as the header")
        # To the reader an empty text in quotes is a missing value: taken for that, as most are.
        some = [{name: value or None for name, value in row.items()} for row in some]
        scores = scorer.score(some, done)
        if not done:
            writer.writerow(scores)
        writer.writerows(zip(*(column.tolist() for column in scores.values()), strict=True))
        done += len(some)
    if not done:
        raise ValueError("there are no rows")


if __name__ == "__main__":
    sys.exit(main())
