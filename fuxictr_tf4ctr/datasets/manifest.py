"""``encoding.json``: what an encoded data set was made from, and which files are ours.

It is written last. A folder whose manifest is absent or says ``"complete": false`` holds no usable
encoding; files that no manifest lists are the user's and are never touched.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.errors import DataError
from fuxictr_tf4ctr.files import write_whole
from fuxictr_tf4ctr.schema import ANYTHING, FLAG, TEXT, Key, Record, one_of, read_json, whole

NAME = "encoding.json"
_FORMAT = "fuxictr_tf4ctr encoding 2"
_REMEDY = "it was not written by this version: remove it, and feature_map.json, to encode again"
_FILE = Record({"size": whole(0), "sha256": TEXT})


class _Files(Record):
    """Files by their names; those in other folders are none of ours to replace."""

    def problems(self, value: Any, where: str = "") -> list[str]:
        found = super().problems(value, where)
        elsewhere = [name for name in value if Path(name).name != name] if not found else []
        return found + [f"{where}: {name!r} is no file name" for name in elsewhere[:1]]


_MANIFEST = Record(
    {"format": one_of(_FORMAT), "complete": FLAG, "files": _Files({}, others=_FILE)},
    others=ANYTHING,
)
_COMPLETE = Record(
    {
        "sources": Record({}, others=ANYTHING),
        "settings": Record({}, others=ANYTHING),
        "fingerprint": TEXT,
        "rows": Record({"train": whole(1), "valid": Key(whole(1)), "test": Key(whole(1))}),
    },
    others=ANYTHING,
)


def describe_files(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Describe files so that a change shows: path, size in bytes, time of change."""
    states = ((os.path.abspath(path), os.stat(path)) for path in paths)
    return [
        {"path": path, "size": state.st_size, "mtime_ns": state.st_mtime_ns}
        for path, state in states
    ]


def fingerprint(content: Mapping[str, Any]) -> str:
    """Return a hex digest of JSON content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read(data_dir: Path) -> dict[str, Any] | None:
    """Read the manifest of a data set, None where there is none.

    Raises:
        DataError: A file of that name is there, and is none of ours.
    """
    path = data_dir / NAME
    try:
        content = read_json(path, _MANIFEST, _REMEDY)
    except FileNotFoundError:
        return None
    problems = _COMPLETE.problems(content, f"{path}: ") if content["complete"] else []
    if problems:
        raise DataError("\n".join([*problems, _REMEDY]))
    return content


def differences(
    manifest: Mapping[str, Any] | None,
    data_dir: Path,
    made_from: Mapping[str, Any],
    names: Iterable[str] = (),
) -> list[str]:
    """Say what keeps an encoding from being used again; empty if nothing does.

    Args:
        manifest: As :func:`read` returned it.
        made_from: The present ``sources`` and ``settings``.
        names: The files an encoding made now would have.
    """
    if manifest is None:
        return ["not encoded yet"]
    if not manifest["complete"]:
        return ["the last encoding was interrupted"]
    found = _damaged_files(manifest, data_dir)
    found += [f"{name} is missing" for name in names if name not in manifest["files"]]
    for group, entries in made_from.items():
        before = manifest[group]
        found += [
            f"{key} changed"
            for key in sorted(entries.keys() | before.keys())
            if entries.get(key) != before.get(key)
        ]
    return found


def _damaged_files(manifest: Mapping[str, Any], data_dir: Path) -> list[str]:
    found = []
    for name, described in manifest["files"].items():
        path = data_dir / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != described["size"]:
            found.append(f"{name} changed its size")
    return found


def verify(data_dir: Path) -> None:
    """Compare the files of an encoding with the checksums in its manifest.

    Raises:
        DataError: A file is missing or was damaged or changed since it was written.
    """
    manifest = read(data_dir)
    if manifest is None:
        return
    found = _damaged_files(manifest, data_dir) or [
        f"{name} is not as it was written"
        for name, described in manifest["files"].items()
        if _checksum(data_dir / name) != described["sha256"]
    ]
    if found:
        raise DataError(f"{data_dir}: {'; '.join(found)}; remove that file to encode again")


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuse_changed_sources(made_from: Mapping[str, Any]) -> None:
    """Raise where a source is no longer as it was described before it was read.

    Raises:
        DataError: It changed in between, so that what was read may be a mixture.
    """
    for described in made_from["sources"].values():
        for before in described:
            path = before["path"]
            if not os.path.exists(path) or describe_files([path]) != [before]:
                raise DataError(f"{path}: changed while it was being encoded; encode it again")


def refuse_foreign_files(
    manifest: Mapping[str, Any] | None, data_dir: Path, names: Iterable[str]
) -> None:
    """Raise where publishing ``names`` would overwrite a file that no manifest lists.

    Raises:
        DataError: One of them is there and is not ours.
    """
    ours = manifest["files"] if manifest else {}
    for name in names:
        if name not in ours and os.path.lexists(data_dir / name):
            raise DataError(
                f"{data_dir / name}: is in the way and was not written by this program; move it, "
                "or choose another dataset_id or data_root"
            )


def publish(
    staged: Path, data_dir: Path, manifest: Mapping[str, Any] | None, content: Mapping[str, Any]
) -> None:
    """Move a finished encoding into place, so that no moment shows a mixture as complete.

    Args:
        staged: Folder with the new files, on the file system of ``data_dir``.
        manifest: The manifest there now, if any.
        content: The new manifest's; ``files`` gets name, size and checksum of the staged files.
    """
    files = {
        path.name: {"size": path.stat().st_size, "sha256": _checksum(path)}
        for path in sorted(staged.iterdir())
    }
    old = manifest["files"] if manifest else {}
    # Written before anything is moved: moving takes no space on the disk.
    during, after = staged.parent / "during.json", staged.parent / "after.json"
    _write(during, {"complete": False, "files": {**old, **files}})
    _write(after, {"complete": True, **content, "files": files})
    # From here to the end the folder is incomplete, yet every file in it stays known as ours.
    os.replace(during, data_dir / NAME)
    for name in old.keys() - files.keys():
        (data_dir / name).unlink(missing_ok=True)
    for name in files:
        os.replace(staged / name, data_dir / name)
    os.replace(after, data_dir / NAME)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps({"format": _FORMAT, **content}, indent=2))
