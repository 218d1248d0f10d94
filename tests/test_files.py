"""Files that appear whole or not at all, on disks that are full, read-only or shared."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import torch
from small_disk import file_limit, small_disk

from fuxictr_tf4ctr import files
from fuxictr_tf4ctr.errors import StorageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_only_when_all_went_well(tmp_path):
    target = tmp_path / "a.txt"
    files.write_whole(target, "old")
    with pytest.raises(ZeroDivisionError), files.whole_file(target) as output:
        output.write(b"ne")
        raise ZeroDivisionError
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]
    files.write_whole(target, "nëw")
    assert target.read_text(encoding="utf-8") == "nëw"


def test_a_folder_appears_whole(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.whole_folder(tmp_path / "x" / "out") as folder:
        (folder / "a").write_text("1")
        raise KeyboardInterrupt
    assert names(tmp_path / "x") == []
    with files.whole_folder(tmp_path / "x" / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "x" / "out").exists()
    assert names(tmp_path / "x") == ["out"] and names(tmp_path / "x" / "out") == ["a"]


def test_a_full_disk_is_named_with_what_is_needed_and_nothing_half_written_stays(tmp_path):
    with small_disk(tmp_path) as disk:
        (disk / "filler").write_bytes(bytes(700_000))
        files.write_whole(disk / "a.json", "old")
        with pytest.raises(StorageError, match=r"no space left .* needs about 0\.9 MB, 0\.3 MB"):
            files.write_whole(disk / "a.json", bytes(900_000))
        unknown_size = files.whole_file(disk / "a.json")
        with pytest.raises(StorageError, match="no space left") as found, unknown_size as output:
            output.write(bytes(900_000))
        assert found.value.exit_code == 1
        assert (disk / "a.json").read_text() == "old" and names(disk) == ["a.json", "filler"]


@pytest.mark.parametrize("writer", ["torch", "h5py"])
def test_writers_in_c_end_with_an_error_and_not_the_process(tmp_path, writer):
    target = tmp_path / "out"
    too_large = pytest.raises(StorageError, match="larger than")
    with file_limit(100_000), too_large, files.whole_file(target) as output:
        if writer == "torch":
            torch.save({"weights": torch.zeros(100_000)}, output)
        else:
            with h5py.File(output, "w") as file:
                file.create_dataset("c", data=torch.zeros(100_000).numpy())
    assert names(tmp_path) == []


def test_what_a_killed_process_left_goes_with_the_next_writing(tmp_path):
    killed = (
        "import os, signal, sys; from fuxictr_tf4ctr import files\n"
        "with files.whole_file(sys.argv[1]) as output, files.whole_folder(sys.argv[2]) as folder:\n"
        "    output.write(b'part'); (folder / 'x').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    target, folder = tmp_path / "a[1].txt", tmp_path / "f"
    subprocess.run([sys.executable, "-c", killed, target, folder], check=False)
    assert len(names(tmp_path)) == 2
    with files.whole_file(target):
        pass
    assert len(names(tmp_path)) == 2 and target.is_file()
    files.sweep_up(tmp_path)
    assert names(tmp_path) == ["a[1].txt"]


def test_a_file_someone_else_writes_is_left_alone(tmp_path):
    with files.whole_file(tmp_path / "a") as first, files.whole_file(tmp_path / "a") as second:
        files.sweep_up(tmp_path)
        first.write(b"1")
        second.write(b"2")
    assert (tmp_path / "a").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.ENAMETOOLONG, "name is too long"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_system_errors_name_the_file(code, text):
    refused = pytest.raises(StorageError, match=f"some/file: .*{text}")
    with refused, files.storage_errors("other"):
        raise OSError(code, os.strerror(code), "some/file")


def test_a_name_as_long_as_can_be_is_written_and_a_longer_one_refused(tmp_path):
    files.write_whole(tmp_path / ("n" * 255), "x")
    with pytest.raises(StorageError, match="too long"):
        files.write_whole(tmp_path / ("n" * 256), "x")


def test_a_folder_or_a_device_is_not_replaced_by_a_file(tmp_path):
    for path in (tmp_path, Path(os.devnull)):
        with pytest.raises(StorageError, match="is no file"):
            files.write_whole(path, "x")


def test_a_lock_is_held_by_one(tmp_path):
    other = (
        "import sys; from fuxictr_tf4ctr.files import held\nwith held(sys.argv[1]) as x: print(x)"
    )
    with files.held(tmp_path / ".lock") as first:
        command = [sys.executable, "-c", other, tmp_path / ".lock"]
        found = subprocess.run(command, capture_output=True, text=True)
    assert first and found.stdout == "False\n"
    waited = []
    with files.held(tmp_path / ".lock", lambda: waited.append(1)) as ours:
        assert ours and not waited
