"""The protocols of the BARS leaderboard, and what a submission may not break."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.runs.records import RunRecord

SPLITS = ("train", "valid", "test")
_METRICS = ("AUC", "logloss")
# What BARS' own scripts split result lines and file names at.
_SPLITTING = re.compile(r"[-\]\[,:]")


@dataclass(frozen=True)
class Split:
    """A data set as BARS distributes it.

    Attributes:
        name: Its name with BARS, which spells out the split: "Criteo_x4".
        rows: Rows of train, valid and test.
        md5: Checksums of train.csv, valid.csv and test.csv.
    """

    name: str
    rows: tuple[int, int, int]
    md5: tuple[str, str, str]


@dataclass(frozen=True)
class Protocol:
    """The settings under which results on a data set are compared.

    Attributes:
        split: The data set.
        bars_id: Name of the protocol, as folders end in it: "criteo_x4_001".
        min_categr_count: Rarer values of a categorical column become OOV.
        embedding_dim: Embedding size.
    """

    split: Split
    bars_id: str
    min_categr_count: int
    embedding_dim: int


_CRITEO = Split(
    "Criteo_x4", (36_672_493, 4_584_062, 4_584_062),
    ("4a53bb7cbc0e4ee25f9d6a73ed824b1a", "fba5428b22895016e790e2dec623cb56",
     "cfc37da0d75c4d2d8778e76997df2976"),
)  # fmt: skip
_AVAZU = Split(
    "Avazu_x4", (32_343_172, 4_042_897, 4_042_898),
    ("de3a27264cdabf66adf09df82328ccaa", "33232931d84d6452d3f956e936cab2c9",
     "3ebb774a9ca74d05919b84a3d402986d"),
)  # fmt: skip
_FRAPPE = Split(
    "Frappe_x1", (202_027, 57_722, 28_860),
    ("ba7306e6c4fc19dd2cd84f2f0596d158", "88d51bf2173505436d3a8f78f2a59da8",
     "3470f6d32713dc5f7715f198ca7c612a"),
)  # fmt: skip
_MOVIELENS = Split(
    "MovielensLatest_x1", (1_404_801, 401_372, 200_686),
    ("efc8bceeaa0e895d566470fc99f3f271", "e1930223a5026e910ed5a48687de8af1",
     "54e8c6baff2e059fe067fb9b69e692d0"),
)  # fmt: skip
_KKBOX = Split(
    "KKBox_x1", (5_901_932, 737_743, 737_743),
    ("195b1ae8fc2d9267d7c8656c07ea1304", "398e97ac139611a09bd61a58e4240a3e",
     "8c5f7add05a6f5258b6b3bcc00ba640b"),
)  # fmt: skip

PROTOCOLS = (
    Protocol(_CRITEO, "criteo_x4_001", 10, 16),
    Protocol(_CRITEO, "criteo_x4_002", 2, 40),
    Protocol(_AVAZU, "avazu_x4_001", 2, 16),
    Protocol(_AVAZU, "avazu_x4_002", 1, 40),
    Protocol(_FRAPPE, "frappe_x1", 1, 10),
    Protocol(_MOVIELENS, "movielenslatest_x1", 1, 10),
    Protocol(_KKBOX, "kkbox_x1", 10, 128),
)


def find_protocol(settings: Mapping[str, Any]) -> Protocol | None:
    """Return the protocol a run comes nearest to, None where BARS has none for its data set.

    Args:
        settings: Settings of the run; its dataset_id must begin with the name of the data set.
    """
    dataset_id = str(settings["dataset_id"]).lower()
    possible = [p for p in PROTOCOLS if f"{dataset_id}_".startswith(f"{p.split.name.lower()}_")]
    return min(possible, key=lambda p: len(_off_protocol(settings, p)), default=None)


def rule_breaks(runs: Sequence[RunRecord], protocol: Protocol) -> list[str]:
    """Say why BARS would not accept these runs; empty where it would.

    Args:
        runs: Runs of one experiment, one per seed.
        protocol: The protocol they are submitted under.
    """
    first = runs[0]
    found = [
        f"{run.folder} is {run.status}, not finished" for run in runs if run.status != "finished"
    ]
    found += _off_protocol(first.settings, protocol)
    found += _name_problems(first)
    found += _data_problems(first, protocol)
    found += _seed_problems(runs)
    return found


def _off_protocol(settings: Mapping[str, Any], protocol: Protocol) -> list[str]:
    return [
        f"{key} is {settings.get(key)}, protocol {protocol.bars_id} asks for {wanted}"
        for key, wanted in (
            ("min_categr_count", protocol.min_categr_count),
            ("embedding_dim", protocol.embedding_dim),
        )
        if settings.get(key) != wanted
    ]


def _name_problems(run: RunRecord) -> list[str]:
    """Find names and metrics that BARS' scripts would cut in the wrong place."""
    found = []
    if "." in run.expid or "_config" in run.expid:
        found.append(
            f"expid {run.expid!r}: BARS' scripts cut it at a dot and take *_config* for the "
            "folder of settings; rename it"
        )
    for metric in _METRICS:
        if metric not in run.test:
            found.append(f"there is no test {metric}: run it with metrics: [AUC, logloss]")
    for metric in run.test:
        if _SPLITTING.search(metric):
            found.append(f"metric {metric!r} has a character that BARS' scripts split at")
    return found


def _data_problems(run: RunRecord, protocol: Protocol) -> list[str]:
    settings, split = run.settings, protocol.split
    found = [
        f"{key} is {settings[key]}: BARS compares results on its own splits, whole"
        for key in ("n_rows", "valid_size", "test_size", "continue_from")
        if settings.get(key)
    ]
    found += [
        f"{key} is {settings[key]}: BARS compares models under one loss of all rows, each once"
        for key in ("weight_col", "pos_weight", "negative_sampling")
        if settings.get(key)
    ]
    rows = run.data.get("rows", {})
    sums: dict[str, str] = {}
    for name, wanted_rows, wanted_sum in zip(SPLITS, split.rows, split.md5, strict=True):
        if rows.get(name) != wanted_rows:
            found.append(f"{name} has {rows.get(name)} rows, {split.name} has {wanted_rows}")
        path = Path(settings.get(f"{name}_data") or "")
        if not path.is_file():
            found.append(f"{name}: {path} is no file whose md5 could be compared")
            continue
        sums[name] = md5_of(path)
        if sums[name] != wanted_sum:
            found.append(f"{path} has md5 {sums[name]}, {split.name} has {wanted_sum}")
    if "valid" in sums and sums["valid"] == sums.get("test"):
        found.append("valid and test are the same data: the test metrics were selected on")
    return found


def _seed_problems(runs: Sequence[RunRecord]) -> list[str]:
    seeds = [run.settings.get("seed") for run in runs]
    found = [f"seed {seed} is there twice" for seed in sorted(set(seeds)) if seeds.count(seed) > 1]
    free = {"seed", "gpu", "model_root", "verbose", "num_workers", "model_id"}
    for run in runs[1:]:
        keys = (run.settings.keys() | runs[0].settings.keys()) - free
        changed = [k for k in sorted(keys) if run.settings.get(k) != runs[0].settings.get(k)]
        if changed:
            found.append(f"{run.folder} differs in {', '.join(changed)}, not in its seed alone")
        if run.data.get("fingerprint") != runs[0].data.get("fingerprint"):
            found.append(f"{run.folder} was trained on other data")
    return found


def md5_of(path: Path) -> str:
    """Return the md5 of a file in hex."""
    digest = hashlib.md5()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
