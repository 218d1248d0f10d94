"""``fuxictr report``: finished runs as one self-contained HTML page."""

from collections.abc import Callable, Sequence
from pathlib import Path

from fuxictr_tf4ctr.analysis.compare import (
    comparable_runs,
    compare_scores,
    refuse_other_labels,
    score_run,
)
from fuxictr_tf4ctr.analysis.report.importance import importance_section
from fuxictr_tf4ctr.analysis.report.inside import embedding_section, watched_gates
from fuxictr_tf4ctr.analysis.report.learning import learning_section
from fuxictr_tf4ctr.analysis.report.overview import page_header, provenance_section, versus_section
from fuxictr_tf4ctr.analysis.report.page import render_page, reported
from fuxictr_tf4ctr.analysis.report.quality import difficulty_section, quality_section
from fuxictr_tf4ctr.analysis.report.twin import twin_section
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.files import write_whole


def write_page(output: str | Path, make: Callable[[], str]) -> None:
    """Write a page that is made once it is known to have a place.

    Raises:
        SettingsError: The folder does not exist.
        StorageError: The file cannot be written.
    """
    output = Path(output)
    if not output.parent.is_dir():
        raise SettingsError(f"--output {output}: the folder {output.parent} does not exist")
    write_whole(output, make())


def make_report(folders: Sequence[str | Path], resamples: int = 1000, seed: int = 0) -> str:
    """Score the test rows with each run and return the page about them, in HTML.

    Args:
        folders: Folders of finished runs on the same data. The first is the subject; the second,
            its base model, say, is what it is measured against.
        resamples: How many bootstrap resamples the intervals come from.
        seed: Seed of the resamples.

    Raises:
        SettingsError: A run is not finished, or ``resamples`` is too small.
        DataError: A run is not there, or the runs' test data are gone, differ, or have fewer than
            two rows of a class to compare them by.
    """
    loaded = comparable_runs(folders, resamples)
    with watched_gates(loaded[0].model) as gates:
        first = score_run(loaded[0])
    scores = [first, *map(score_run, loaded[1:])]
    refuse_other_labels(scores)
    comparisons = [compare_scores(other, first, resamples, seed) for other in scores[1:]]
    runs = reported(scores)
    sections = [
        versus_section(runs, comparisons),
        learning_section(runs),
        quality_section(runs),
        twin_section(runs[0], gates()),
        difficulty_section(runs),
        importance_section(runs[0]),
        embedding_section(runs[:2]),
        provenance_section(runs),
    ]
    header = page_header(runs, comparisons)
    return render_page(runs[0].record.expid, header, sections)
