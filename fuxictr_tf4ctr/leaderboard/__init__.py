"""Submissions to the BARS leaderboard: a run or a sweep's best settings as a folder of it."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.files import whole_folder, write_whole
from fuxictr_tf4ctr.leaderboard import bars, protocols
from fuxictr_tf4ctr.leaderboard.protocols import find_protocol, rule_breaks
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.runs.records import RunRecord, read_run
from fuxictr_tf4ctr.sweep.folder import read_sweep

_FEW_SEEDS = 5


@dataclass(frozen=True)
class Submission:
    """What :func:`submit` wrote.

    Attributes:
        folder: The folder of the run, as BARS wants it.
        leaderboard_row: The line for BARS' leaderboard table.
        problems: Rules that a draft breaks; empty in a real submission.
        notes: What the contributor should know.
    """

    folder: Path
    leaderboard_row: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def submit(
    source: Path,
    target: Path,
    expid: str | None = None,
    contributor: str = "",
    draft: bool = False,
) -> Submission:
    """Check a run or the best settings of a sweep, and write them as BARS wants them.

    Args:
        source: Folder of a run or of a sweep.
        target: Checkout of BARS, or a folder to begin one.
        expid: Of a sweep, the experiment to submit; None for the best by validation. A run has
            its own.
        contributor: Who submits: ``Name`` or ``Name <URL>``.
        draft: Write the folder even if it breaks rules; its README then begins with them.

    Raises:
        SettingsError: BARS would not accept it, with every reason; or the folder is there already.
        DataError: The source is neither a run nor a sweep, or another version's.
    """
    study = _read_source(source, expid)
    first = study.runs[0]
    protocol = find_protocol(first.settings)
    if protocol is None:
        known = ", ".join(sorted(p.bars_id for p in protocols.PROTOCOLS))
        raise SettingsError(
            f"{source}: data set {first.settings['dataset_id']!r} has no BARS protocol; BARS has "
            f"{known}"
        )
    problems = rule_breaks(study.runs, protocol) + bars.missing_in_record(first)
    if problems and not draft:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise SettingsError(
            f"BARS would not accept {source} as {protocol.bars_id}:\n{listed}\n"
            "--draft writes the folder all the same, marked as not to be submitted"
        )
    files = bars.folder_files(study, protocol, problems)
    model = bars.model_name(first)
    folder = target / "ranking" / "ctr" / model / f"{model}_{protocol.bars_id}"
    row = bars.leaderboard_row(study.runs, protocol, contributor)
    _write_folder(folder, files)
    if not problems:
        _append_row(target / "docs" / "CTR" / "leaderboard" / f"{protocol.bars_id}.csv", row)
    return Submission(folder, row, problems, _notes(study, contributor))


def _read_source(source: Path, expid: str | None) -> bars.Study:
    if (source / "sweep.json").is_file():
        return _read_sweep_study(source, expid)
    if (source / "run.json").is_file():
        run = read_run(source)
        if expid not in (None, run.expid):
            raise SettingsError(
                f"{source} is a run of {run.expid}: --expid {expid} is for a sweep that holds it"
            )
        return bars.study_of_run(run)
    raise DataError(f"{source} holds neither run.json nor sweep.json: name a run or a sweep")


def _read_sweep_study(source: Path, expid: str | None) -> bars.Study:
    folder, content = read_sweep(source)
    ranking = source / "ranking.csv"
    if not ranking.is_file():
        raise DataError(f"{source} has no ranking: no run of this sweep has finished")
    with ranking.open(encoding="utf-8", newline="") as rows:
        ranked = [row["expid"] for row in csv.DictReader(rows)]
    expid = ranked[0] if expid is None else expid
    if expid not in ranked:
        raise SettingsError(unknown("finished expid of the sweep", expid, ranked))
    runs = {
        point["expid"]: _finished(folder.runs / point["dataset_id"] / point["expid"])
        for point in content["points"]
    }
    return bars.Study(
        expid=expid,
        runs=runs[expid],
        tuner_yaml=folder.tuner_file.read_text(encoding="utf-8"),
        tuner_csv="".join(bars.result_line(r[0], name) for name, r in runs.items() if r),
        model_config=(folder.config / "model_config.yaml").read_text(encoding="utf-8"),
        dataset_config=(folder.config / "dataset_config.yaml").read_text(encoding="utf-8"),
    )


def _finished(folder: Path) -> list[RunRecord]:
    """Return the latest finished run of each seed."""
    records = [read_run(file.parent) for file in sorted(folder.glob("*/run.json"))]
    by_seed = {r.settings["seed"]: r for r in records if r.status == "finished"}
    return [by_seed[seed] for seed in sorted(by_seed)]


def _write_folder(folder: Path, files: dict[str, str]) -> None:
    """Write all files or none; nothing that is there is overwritten."""
    if folder.exists():
        raise SettingsError(f"{folder} is there already: move it, or choose another --to")
    with whole_folder(folder) as staging:
        for name, text in files.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_text(text, encoding="utf-8")


def _append_row(file: Path, row: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.read_text(encoding="utf-8") if file.is_file() else f"{bars.ROW_HEADER}\n"
    if row not in before.splitlines():
        separator = "" if before.endswith("\n") else "\n"
        write_whole(file, f"{before}{separator}{row}\n")


def _notes(study: bars.Study, contributor: str) -> list[str]:
    notes = []
    if len(study.runs) < _FEW_SEEDS:
        notes.append(
            f"{len(study.runs)} seed(s): BARS takes one, but its own spreads are of "
            f"{_FEW_SEEDS} (fuxictr tune --seeds {_FEW_SEEDS})"
        )
    if not contributor:
        notes.append("the leaderboard row names no contributor: give --contributor 'Name <URL>'")
    return notes
