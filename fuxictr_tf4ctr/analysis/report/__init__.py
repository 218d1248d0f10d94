"""``fuxictr report``: finished runs as one self-contained HTML page."""

from collections.abc import Callable, Sequence
from pathlib import Path

from fuxictr_tf4ctr.analysis.compare import (
    compare_scores,
    finished_run,
    refuse_other_labels,
    refuse_other_rows,
    score_run,
)
from fuxictr_tf4ctr.analysis.report.importance import importance_section
from fuxictr_tf4ctr.analysis.report.inside import GateWatch, embedding_section
from fuxictr_tf4ctr.analysis.report.learning import learning_section
from fuxictr_tf4ctr.analysis.report.overview import page_header, provenance_section, versus_section
from fuxictr_tf4ctr.analysis.report.page import render_page, reported
from fuxictr_tf4ctr.analysis.report.quality import difficulty_section, quality_section
from fuxictr_tf4ctr.analysis.report.twin import twin_section
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.files import write_whole


def write_report(
    folders: Sequence[str | Path], output: str | Path, resamples: int = 1000, seed: int = 0
) -> None:
    """Score the test rows with each run and write the page about them.

    Args:
        folders: Folders of finished runs on the same data. The first is the subject; the second,
            its base model, say, is what it is measured against.
        output: The HTML file to write; one that is there is replaced.
        resamples: How many bootstrap resamples the intervals come from.
        seed: Seed of the resamples.

    Raises:
        SettingsError: A run is not there or not finished.
        StorageError: The file cannot be written.
        DataError: The runs' test data are gone or differ.
    """
    write_page(output, lambda: make_report(folders, resamples, seed))


def write_page(output: str | Path, make: Callable[[], str]) -> None:
    """Write a page that is made once it is known to have a place."""
    output = Path(output)
    if not output.parent.is_dir():
        raise SettingsError(f"--output {output}: the folder {output.parent} does not exist")
    write_whole(output, make())


def make_report(folders: Sequence[str | Path], resamples: int = 1000, seed: int = 0) -> str:
    """Return the page of :func:`write_report`."""
    if resamples < 2:
        raise SettingsError(f"resamples={resamples} must be 2 or more")
    loaded = [finished_run(folder) for folder in folders]
    refuse_other_rows(loaded)
    with GateWatch(loaded[0].model) as watch:
        first = score_run(loaded[0])
    scores = [first, *map(score_run, loaded[1:])]
    refuse_other_labels(scores)
    comparisons = [compare_scores(other, first, resamples, seed) for other in scores[1:]]
    runs = reported(scores)
    sections = [
        versus_section(runs, comparisons),
        learning_section(runs),
        quality_section(runs),
        twin_section(runs[0], watch.gates()),
        difficulty_section(runs),
        importance_section(runs[0]),
        embedding_section(runs[:2]),
        provenance_section(runs),
    ]
    header = page_header(runs, comparisons)
    return render_page(runs[0].record.expid, header, [each for each in sections if each])
