"""Two runs on the same test rows: their metrics, how sure the difference is, speed and size."""

from fuxictr_tf4ctr.analysis.compare.compare import Comparison, compare_runs
from fuxictr_tf4ctr.analysis.compare.scores import RunScores, refuse_other_rows, score_run

__all__ = ["Comparison", "RunScores", "compare_runs", "refuse_other_rows", "score_run"]
