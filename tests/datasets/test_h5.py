"""The file layout: what is written comes back, what is broken is named."""

import h5py
import numpy as np
import pytest

from fuxictr_tf4ctr.datasets.stored import (
    CHUNK_ROWS,
    H5Writer,
    count_rows,
    part_files,
    read_columns,
)
from fuxictr_tf4ctr.errors import DataError


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
        assert file["words"].chunks == (CHUNK_ROWS // 3, 3)
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
    with pytest.raises(DataError, match=r"train: no h5 file here, nor train\.h5"):
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
