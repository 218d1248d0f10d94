"""The files of a data set: h5 written and read, parquet and npz of FuxiCTR read."""

import gc

import h5py
import numpy as np
import polars as pl
import pytest
from small_data import encoded_columns, store
from small_disk import file_limit

from fuxictr_tf4ctr.datasets.stored import (
    CHUNK_ROWS,
    H5Writer,
    count_rows,
    opened,
    part_files,
    read_columns,
)
from fuxictr_tf4ctr.errors import DataError, StorageError


def test_chunks_come_back_as_one_column_each(tmp_path):
    ids = np.arange(7, dtype=np.int16)
    sequences = np.arange(14, dtype=np.uint8).reshape(7, 2)
    with H5Writer(tmp_path / "x.h5") as writer:
        for rows in (slice(0, 3), slice(3, 6), slice(6, 7)):
            writer.append({"id": ids[rows], "sequence": sequences[rows]})
    columns = read_columns(tmp_path / "x.h5", ["sequence", "id"])
    assert list(columns) == ["sequence", "id"]
    np.testing.assert_array_equal(columns["id"], ids)
    np.testing.assert_array_equal(columns["sequence"], sequences)
    assert columns["id"].dtype == np.int16 and columns["sequence"].dtype == np.uint8
    assert count_rows(tmp_path / "x") == 7


@pytest.mark.parametrize("compression", [None, "lzf", "gzip"])
def test_columns_are_chunked_and_may_be_compressed(tmp_path, compression):
    words = np.arange(300_000, dtype=np.int32).reshape(-1, 3)
    with H5Writer(tmp_path / "x.h5", compression) as writer:
        writer.append({"words": words[:70_001]})
        writer.append({"words": words[70_001:]})
    with h5py.File(tmp_path / "x.h5") as file:
        # Compressed chunks are read as a whole, and so are smaller.
        assert file["words"].chunks == (CHUNK_ROWS // (8 if compression else 1) // 3, 3)
        assert file["words"].compression == compression
    np.testing.assert_array_equal(read_columns(tmp_path / "x.h5", ["words"])["words"], words)
    assert writer.rows == 100_000


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.h5"
    with H5Writer(path) as writer:
        writer.append({"id": np.array([1, 2])})
    with pytest.raises(KeyboardInterrupt), H5Writer(path) as writer:
        writer.append({"id": np.array([8])})
        raise KeyboardInterrupt
    assert read_columns(path, ["id"])["id"].tolist() == [1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["x.h5"]


@pytest.mark.parametrize(
    ("chunk", "message"),
    [({"id": np.ones(1), "x": np.ones(2)}, "differ in length"), ({"x": np.ones(2)}, "before")],
)
def test_chunks_that_do_not_fit_are_refused(tmp_path, chunk, message):
    with pytest.raises(ValueError, match=message), H5Writer(tmp_path / "x.h5") as writer:
        writer.append({"id": np.array([8])})
        writer.append(chunk)
    assert not list(tmp_path.iterdir())


def test_parts_are_read_in_the_order_of_their_numbers(tmp_path):
    for part in range(12):
        with h5py.File(tmp_path / f"part_{part}.h5", "w") as file:
            file["id"] = np.array([part, part])
    assert [path.name for path in part_files(tmp_path)] == [f"part_{i}.h5" for i in range(12)]
    expected = np.repeat(np.arange(12), 2)
    np.testing.assert_array_equal(read_columns(tmp_path, ["id"])["id"], expected)
    np.testing.assert_array_equal(read_columns(tmp_path / "part_*.h5", ["id"])["id"], expected)
    assert count_rows(tmp_path) == 24


def test_the_suffix_may_be_left_out(tmp_path):
    with H5Writer(tmp_path / "v1.train.h5") as writer:
        writer.append({"id": np.array([3])})
    assert part_files(tmp_path / "v1.train") == [tmp_path / "v1.train.h5"]


def test_the_matrix_of_fuxictr_1_is_split(tmp_path):
    matrix = np.arange(20, dtype=np.float64).reshape(4, 5)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data"] = matrix
    index = {"a": 0, "words": [1, 2, 3], "label": -1}
    columns = read_columns(tmp_path / "x.h5", ["words", "label"], index)
    np.testing.assert_array_equal(columns["words"], matrix[:, 1:4])
    np.testing.assert_array_equal(columns["label"], matrix[:, 4])
    with pytest.raises(DataError, match="which of its 5 columns 'b' is"):
        read_columns(tmp_path / "x.h5", ["b"], index)
    with pytest.raises(DataError, match="matrix has 5 columns, fewer"):
        read_columns(tmp_path / "x.h5", ["b"], {"b": 5})


def test_a_column_may_be_called_data(tmp_path):
    with H5Writer(tmp_path / "x.h5") as writer:
        writer.append({"data": np.array([[1, 2], [3, 4]])})
    assert read_columns(tmp_path / "x.h5", ["data"])["data"].tolist() == [[1, 2], [3, 4]]


def test_missing_files_and_columns_are_named(tmp_path):
    with pytest.raises(DataError, match=r"train: no \.h5, \.parquet, \.npz file here"):
        read_columns(tmp_path / "train", ["id"])
    with H5Writer(tmp_path / "x.h5") as writer:
        writer.append({"user_id": np.array([1]), "item": np.array([1])})
    with pytest.raises(DataError, match=r"x\.h5: no column 'userid'; there: user_id$"):
        read_columns(tmp_path / "x.h5", ["userid"])


@pytest.mark.parametrize("kept_bytes", [0, 3, 600])
def test_truncated_files_are_named(tmp_path, kept_bytes):
    path = tmp_path / "x.h5"
    with H5Writer(path) as writer:
        writer.append({"id": np.arange(1000)})
    path.write_bytes(path.read_bytes()[:kept_bytes])
    for read in (lambda: read_columns(path, ["id"]), lambda: count_rows(path)):
        with pytest.raises(DataError, match=r"x\.h5: cannot be read as HDF5"):
            read()


def test_a_file_of_another_format_is_named(tmp_path):
    (tmp_path / "x.h5").write_text("user,item\n1,2\n" * 100)
    with pytest.raises(DataError, match=r"x\.h5: cannot be read as HDF5"):
        read_columns(tmp_path / "x.h5", ["user"])


def save(path, columns):
    """Write columns as FuxiCTR does: lists in parquet, arrays in npz."""
    if path.suffix == ".npz":
        np.savez_compressed(path, **columns)
    else:
        frame = {name: list(v) if v.ndim > 1 else v for name, v in columns.items()}
        pl.DataFrame(frame).write_parquet(path, row_group_size=10)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_what_fuxictr_left_is_read_as_h5_is(tmp_path, suffix):
    columns = encoded_columns(60)
    expected = read_columns(store(tmp_path / "a.h5", columns), list(columns))
    path = save(tmp_path / f"train{suffix}", columns)
    found = read_columns(path, list(columns))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert count_rows(path) == 60 and part_files(tmp_path / "train") == [path]
    with opened(path) as file:
        size = file.block_rows(60, 25)
        pieces = [
            file.read(["color"], at, min(at + size, 60))["color"] for at in range(0, 60, size)
        ]
    assert len(pieces) == (3 if suffix == ".parquet" else 1)
    np.testing.assert_array_equal(np.concatenate(pieces), expected["color"])


def test_a_folder_of_parts_is_of_one_kind(tmp_path):
    for number in (10, 2):
        save(tmp_path / f"part-{number}.parquet", {"c": np.array([number])})
    (tmp_path / "_SUCCESS").touch()
    assert read_columns(tmp_path, ["c"])["c"].tolist() == [2, 10]


BAD_STORED = {
    "lists of two lengths": (".parquet", {"c": [[1, 2], [3]]}, "padded to one length"),
    "no such column": (".parquet", {"d": [1]}, "no column 'c'; there: d"),
    "no such array": (".npz", {"d": np.zeros(3)}, "no column 'c'; there: d"),
    "pickled": (".npz", {"c": np.array([{}], dtype=object)}, "cannot be read as npz"),
}


@pytest.mark.parametrize(("suffix", "columns", "message"), BAD_STORED.values(), ids=BAD_STORED)
def test_bad_columns_of_other_formats_are_named(tmp_path, suffix, columns, message):
    path = tmp_path / f"x{suffix}"
    if suffix == ".npz":
        np.savez(path, **columns)
    else:
        pl.DataFrame(columns).write_parquet(path)
    with pytest.raises(DataError, match=message):
        read_columns(path, ["c"])


@pytest.mark.parametrize("suffix", [".h5", ".parquet", ".npz"])
def test_a_csv_file_by_another_name_is_refused(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_text("c\n1\n")
    with pytest.raises(DataError, match=f"cannot be read as {suffix[1:]}|cannot be read as HDF5"):
        count_rows(path)


@pytest.mark.parametrize("chunks", [True, None])
def test_rows_that_are_claimed_and_not_there_are_refused(tmp_path, chunks):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("c", (10**12,), dtype="i4", chunks=chunks)
    with pytest.raises(DataError, match="'c' claims 1000000000000 rows and does not hold them"):
        count_rows(tmp_path / "x.h5")


def test_a_disk_that_fills_up_ends_in_an_error_and_leaves_the_old_file(tmp_path):
    column = {"c": np.arange(500_000, dtype=np.int32)}
    path = store(tmp_path / "x.h5", {"c": np.arange(3)})
    with file_limit(1_000_000), pytest.raises(StorageError), H5Writer(path) as writer:
        writer.append(column)
    gc.collect()
    assert read_columns(path, ["c"])["c"].tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]
