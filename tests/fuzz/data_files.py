"""Generators of data files: raw csv and parquet, encoded h5, parquet and npz, weights and states.

Not by polars: its threads would be missing in the processes that are forked for the cases.
"""

import copy
import csv
import datetime
import gzip
import io
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from hypothesis import strategies as st

from . import project
from .inputs import READERS, RESUME, VALUES, Case, misplace

_DATA = ("--config", "config", "--dataset", "mine")
_AS_IT_IS = ("--set", "rebuild_dataset=False")
_SCORES = ("predict", "--run", "done", "--output", "out.csv", "--input")
_SPLITS = ("train", "valid", "test")
_RAW_COLUMNS = ("label", "user", "item", "price", "tags")
_CELLS = (
    *(b"", b" ", b"nan", b"NaN", b"inf", b"-1", b"1e400", b"1e39", b"99999999999999999999999"),
    *(b"u1", b'"', b'""', b'"a,b"', b'"a\nb"', b"a^b^c^d", b"^", b"\xff\xfe", b"\0", b"\r", b",,"),
    *(b"0.5", b"2", b"true", b"None", "ü€".encode(), b"x" * 5000, b"#", b"1_000", b"0x1f"),
)


def _damaged(draw: Callable, data: bytes) -> bytes:
    """Return a file with bytes cut, changed or added."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(changed) - 1, 0)))
        harm = draw(st.sampled_from(["byte", "byte", "cut", "zero", "add", "twice"]))
        if harm == "byte" and changed:
            changed[place] ^= draw(st.integers(1, 255))
        elif harm == "cut":
            del changed[place:]
        elif harm == "zero":
            changed[place : place + 64] = bytes(len(changed[place : place + 64]))
        elif harm == "add":
            changed[place:place] = draw(st.binary(min_size=1, max_size=32))
        else:
            changed += changed[place:]
    return bytes(changed)


def _dataset(**changes: Any) -> dict[str, bytes]:
    section = copy.deepcopy(project.DATASET) | changes
    return {"config/dataset_config.yaml": yaml.safe_dump({"mine": section}).encode()}


@st.composite
def csv_files(draw: Callable, kept: Path) -> Case:
    """Raw csv files with cells, lines or bytes that are not as they should be."""
    split = draw(st.sampled_from(_SPLITS))
    lines = (kept / "raw" / f"{split}.csv").read_bytes().splitlines()
    for _ in range(draw(st.integers(1, 5))):
        place = draw(st.integers(0, len(lines) - 1)) if lines else 0
        harm = draw(
            st.sampled_from(["cell"] * 6 + ["drop", "again", "more", "less", "blank", "all"])
        )
        cells = lines[place].split(b",") if lines else [b""]
        if harm == "cell":
            cells[draw(st.integers(0, len(cells) - 1))] = draw(st.sampled_from(_CELLS))
        elif harm == "more":
            cells.append(draw(st.sampled_from(_CELLS)))
        elif harm == "less":
            cells.pop()
        elif harm == "blank":
            cells = []
        lines[place : place + 1] = (
            [] if harm == "drop" else [b",".join(cells)] * (2 if harm == "again" else 1)
        )
        if harm == "all":
            del lines[1:]
    data = draw(st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r"])).join(lines)
    if draw(st.integers(0, 4)) == 0:
        data = _damaged(draw, data)
    name = f"raw/{split}.csv"
    files: dict[str, bytes | None] = {name: data}
    if draw(st.integers(0, 9)) == 0:
        files = {name: None, f"{name}.gz": gzip.compress(data)}
        if draw(st.booleans()):
            files[f"{name}.gz"] = _damaged(draw, files[f"{name}.gz"])
        files |= _dataset(**{f"{split}_data": f"{name}.gz"})
        name += ".gz"
    argv = draw(
        st.sampled_from(
            [
                ("encode", *_DATA), ("describe", *_DATA), project.RUN,
                (*_SCORES, name), (*_SCORES, name, "--skip-bad-rows"),
                ("evaluate", "--run", "done", "--input", name),
                ("evaluate", "--run", "done", "--input", name, "--skip-bad-rows"),
                ("init", name, "--label", "label", "--output", "begun"), project.CONTINUE,
            ]
        )
    )  # fmt: skip
    return Case("csv file", argv, files)


def _column(draw: Callable, rows: int) -> pa.Array:
    """A parquet column of a type that may not be the one that was declared."""
    at = list(range(rows))
    texts, half = [f"u{i % 5}" for i in at], [i / 2 for i in at]
    date = datetime.date(2024, 1, 1)
    lists = [[f"u{i % 5}"] * (i % 3) for i in at]
    made: dict[str, tuple[list[Any], pa.DataType]] = {
        "texts": (texts, pa.string()),
        "large texts": (texts, pa.large_string()),
        "dictionary": (texts, pa.dictionary(pa.int8(), pa.string())),
        "nulls": ([None] * rows, pa.null()),
        "some nulls": ([None, *texts[1:]][:rows], pa.string()),
        "numbers": (half, pa.float64()),
        "half": (np.array(half, np.float16).tolist(), pa.float32()),
        "nan": ([float("nan")] * rows, pa.float64()),
        "inf": ([float("inf")] * rows, pa.float64()),
        "missing": ([None] * rows, pa.float64()),
        "small": ([i % 2 for i in at], pa.uint8()),
        "large": ([2**63 - 1] * rows, pa.int64()),
        "unsigned": ([2**64 - 1] * rows, pa.uint64()),
        "flags": ([i % 2 == 0 for i in at], pa.bool_()),
        "dates": ([date] * rows, pa.date32()),
        "times": ([datetime.datetime(2024, 1, 1)] * rows, pa.timestamp("us")),
        "durations": ([datetime.timedelta(1)] * rows, pa.duration("us")),
        "decimals": ([Decimal("1.5")] * rows, pa.decimal128(5, 2)),
        "binary": ([b"\xff\x00"] * rows, pa.binary()),
        "records": ([{"a": 1}] * rows, pa.struct({"a": pa.int64()})),
        "lists": (lists, pa.list_(pa.string())),
        "number lists": ([[i, 2] for i in at], pa.list_(pa.int64())),
        "lists with nulls": ([[None, "a"]] * rows, pa.list_(pa.string())),
        "lists of lists": ([[[1], [2]]] * rows, pa.list_(pa.list_(pa.int64()))),
        "null lists": ([None] * rows, pa.list_(pa.string())),
        "arrays": ([[1.0, 2.0]] * rows, pa.list_(pa.float32(), 2)),
    }
    return pa.array(*made[draw(st.sampled_from(sorted(made)))])


def _parquet(columns: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


@st.composite
def parquet_files(draw: Callable, kept: Path) -> Case:
    """Raw parquet files with columns of other types, or damaged, or of another format."""
    wrong, everywhere = draw(st.sampled_from(_SPLITS)), draw(st.booleans())
    changed = draw(st.lists(st.sampled_from(_RAW_COLUMNS), max_size=2, unique=True))
    empty = draw(st.integers(0, 9)) == 0
    dropped = draw(st.sampled_from(_RAW_COLUMNS)) if draw(st.integers(0, 9)) == 0 else None
    files: dict[str, bytes | None] = {}
    for split in _SPLITS:
        text = (kept / "raw" / f"{split}.csv").read_text()
        rows = list(csv.DictReader(io.StringIO(text)))
        rows = [] if empty and split == wrong else rows
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in _RAW_COLUMNS}
        for name in ("label", "price"):
            columns[name] = [float(value) for value in columns[name]]
        if split == wrong or everywhere:
            columns |= {name: _column(draw, len(rows)) for name in changed}
            columns.pop(dropped, None)
        files[f"raw/{split}.parquet"] = _parquet(columns)
    name = f"raw/{wrong}.parquet"
    harm = draw(st.sampled_from(["none"] * 4 + ["bytes", "csv"]))
    if harm == "bytes":
        files[name] = _damaged(draw, files[name])
    elif harm == "csv":
        files[name] = (kept / "raw" / "test.csv").read_bytes()
    paths = {f"{split}_data": f"raw/{split}.parquet" for split in _SPLITS}
    files |= _dataset(data_format="parquet", **paths)
    commands = [("encode", *_DATA), ("describe", *_DATA), ("decode", *_DATA), project.RUN]
    commands += [project.CONTINUE]
    commands += [(*_SCORES, name), (*_SCORES, name, "--skip-bad-rows")]
    commands += [("evaluate", "--run", "done", "--input", name), ("init", name, "--label", "label")]
    return Case("parquet file", draw(st.sampled_from(commands)), files)


def _array(draw: Callable, values: np.ndarray) -> Any:
    """A stored column that may not be the one the feature map declares."""
    rows = len(values)
    made: dict[str, Callable[[], Any]] = {
        "same": lambda: values,
        "floats": lambda: values + 0.5,
        "negative": lambda: -1 - values.astype(np.int64),
        "huge": lambda: values.astype(np.float64) * 1e300,
        "large ids": lambda: np.full(values.shape, 2**62),
        "nan": lambda: np.full(values.shape, np.nan),
        "complex": lambda: values.astype(complex),
        "texts": lambda: np.full(values.shape, b"a"),
        "flags": lambda: values > 0,
        "unsigned": lambda: values.astype(np.uint64),
        "half": lambda: values.astype(np.float16),
        "empty": lambda: values[:0],
        "shorter": lambda: values[:-1],
        "wider": lambda: np.zeros((rows, 4)),
        "cube": lambda: np.zeros((rows, 2, 2)),
        "scalar": lambda: np.float64(1),
        "times": lambda: np.zeros(rows, "M8[s]"),
        "records": lambda: np.zeros(rows, [("a", "i4"), ("b", "f8")]),
        "objects": lambda: np.array([None] * rows, dtype=object),
    }
    return made[draw(st.sampled_from(sorted(made)))]()


def _h5(draw: Callable, columns: dict[str, Any]) -> bytes:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        for name, values in columns.items():
            harm = draw(
                st.sampled_from(["none"] * 30 + ["claim", "group", "chunks", "link", "null"])
            )
            if harm == "claim":
                file.create_dataset(
                    name, (10**12,), "i4", chunks=draw(st.sampled_from([True, None]))
                )
            elif harm == "group":
                file.create_group(name)
            elif harm == "link":
                file[name] = h5py.SoftLink("/nowhere")
            elif harm == "null":
                file[name] = h5py.Empty("f4")
            elif getattr(values, "dtype", None) is not None and values.dtype.kind in "MO":
                file[name] = np.zeros(len(values), "S3")
            elif harm == "chunks" and np.ndim(values):
                file.create_dataset(name, data=values, chunks=True, compression="gzip")
            else:
                file[name] = values
    return memory.getvalue()


def _npz(columns: dict[str, Any]) -> bytes:
    memory = io.BytesIO()
    np.savez(memory, **columns)
    return memory.getvalue()


def _lists(columns: dict[str, Any]) -> bytes:
    frame = {}
    for name, values in columns.items():
        values = np.asarray(values)
        plain = values.dtype.kind in "biufS" and values.ndim in (1, 2)
        rows = values.shape[0] if values.ndim else 1
        frame[name] = values.tolist() if plain else [None] * rows
    longest = max(map(len, frame.values()))
    return _parquet({name: each + [None] * (longest - len(each)) for name, each in frame.items()})


@st.composite
def encoded_files(draw: Callable, kept: Path) -> Case:
    """Encoded rows with columns of other types and shapes, or damaged, in each format."""
    split = draw(st.sampled_from(_SPLITS))
    with h5py.File(kept / "encoded" / "mine" / f"{split}.h5") as file:
        columns: dict[str, Any] = {name: column[:] for name, column in file.items()}
    for name in draw(st.lists(st.sampled_from(sorted(columns)), max_size=2, unique=True)):
        columns[name] = _array(draw, columns[name])
    if draw(st.integers(0, 9)) == 0:
        del columns[draw(st.sampled_from(sorted(columns)))]
    kind = draw(st.sampled_from(["h5", "h5", "npz", "parquet"]))
    data = {"npz": _npz, "parquet": _lists}.get(kind, lambda found: _h5(draw, found))(columns)
    if draw(st.integers(0, 3)) == 0:
        data = _damaged(draw, data)
    name = f"encoded/mine/{split}.{kind}"
    files: dict[str, bytes | None] = {name: data}
    as_it_is: tuple[str, ...] = _AS_IT_IS
    if kind != "h5" or draw(st.booleans()):
        paths = {f"{each}_data": f"encoded/mine/{each}.h5" for each in _SPLITS}
        paths = {key: value for key, value in paths.items() if key != f"{split}_data"}
        columns_of = {"feature_cols": None} if kind != "h5" else {}
        files |= _dataset(data_format=kind, **paths, **{f"{split}_data": name}, **columns_of)
        as_it_is = ()
    commands = [("describe", *_DATA), (*project.RUN,), ("encode", *_DATA)]
    commands += [("decode", *_DATA, "--split", split, "--rows", "70")] * 2
    argv = draw(st.sampled_from(commands))
    return Case(f"encoded {kind} file", (*argv, *as_it_is), files)


@st.composite
def weights_files(draw: Callable, kept: Path) -> Case:
    """Weights and states with bytes cut, changed or added, read by the commands that do."""
    states = [str(path.relative_to(kept)) for path in (kept / "stopped").glob("state/*")]
    ancestors = ["done/exp.optimizer", "done/schema/rare_tokens.parquet"]
    names = ["done/exp.model", "stopped/exp.model", *ancestors, *sorted(states)]
    name = draw(st.sampled_from(names))
    of_done = READERS["done/run.json"][:2] + READERS["done/run.json"][3:4] + (project.CONTINUE,)
    argv = draw(st.sampled_from(of_done)) if name == "done/exp.model" else RESUME
    argv = project.CONTINUE if name in ancestors else argv
    return Case("weights file", argv, {name: _damaged(draw, (kept / name).read_bytes())})


_TENSORS = st.sampled_from(
    [
        torch.zeros(0), torch.zeros(3), torch.tensor(float("nan")), torch.full((4, 4), 1e38),
        torch.ones(2, dtype=torch.int64), torch.zeros(2, dtype=torch.complex64),
        torch.zeros(16, dtype=torch.uint8), torch.zeros(1).expand(10**9), torch.eye(3).to_sparse(),
    ]
)  # fmt: skip


@st.composite
def state_files(draw: Callable, kept: Path) -> Case:
    """States of a run, whole files with values of other types, taken up."""
    latest = max((kept / "stopped" / "state").iterdir())
    content = torch.load(latest, weights_only=True)
    misplace(draw, content, st.one_of(VALUES, _TENSORS))
    file = io.BytesIO()
    torch.save(content, file)
    files: dict[str, bytes | None] = {
        str(path.relative_to(kept)): None for path in latest.parent.iterdir()
    }
    return Case("state file", RESUME, files | {str(latest.relative_to(kept)): file.getvalue()})
