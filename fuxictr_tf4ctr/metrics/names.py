"""Names of metrics: FuxiCTR's, calibration added, and each of a stream of a two-stream model.

A name that ends in ``_simple`` or ``_complex`` is the metric of that stream. Nothing here imports
more than the standard library, so that settings are checked at once.
"""

import difflib
import re

from fuxictr_tf4ctr.errors import SettingsError

# Streams a two-stream model scores beside its final prediction: y_simple, y_complex.
STREAMS = ("simple", "complex")
# Beside y_pred, of a model that was calibrated after training.
CALIBRATED = "calibrated"
PLAIN = ("logloss", "binary_crossentropy", "AUC", "ece", "pcoc")
GROUPED = ("gAUC", "avgAUC", "MRR")
# NDCG and NDCG() mean FuxiCTR's default, k = 1.
_NDCG = re.compile(r"NDCG(?:@([1-9]\d*)|\(\s*(?:(?:k\s*=\s*)?([1-9]\d*))?\s*\))?")


def check_metric(name: str) -> None:
    """Raise SettingsError, naming the nearest known metrics, unless ``name`` is a metric."""
    metric, stream = split_stream(name)
    if stream == CALIBRATED:
        raise SettingsError(f"metric {name!r} comes by itself with the setting calibration")
    if metric in (*PLAIN, *GROUPED) or ndcg_places(metric):
        return
    known = {metric.lower(): metric for metric in (*PLAIN, *GROUPED, "NDCG(k=5)")}
    streams = {f"auc_{stream}": f"AUC_{stream}" for stream in STREAMS}
    nearest = difflib.get_close_matches(name.lower(), known | streams, n=2, cutoff=0.5)
    named = " or ".join((known | streams)[match] for match in nearest)
    hint = f"did you mean {named}? " if nearest else ""
    raise SettingsError(
        f"unknown metric {name!r}: {hint}Known metrics: {', '.join(known.values())}, "
        f"and of a stream with {' or '.join(f'_{stream}' for stream in STREAMS)} behind"
    )


def needs_group(name: str) -> bool:
    """Whether the metric ranks rows within groups and so needs ``group_id``.

    Raises:
        SettingsError: As :func:`check_metric`.
    """
    check_metric(name)
    return split_stream(name)[0] not in PLAIN


def split_stream(name: str) -> tuple[str, str | None]:
    """Split ``AUC_simple`` into the metric and its stream, None for the final prediction's."""
    metric, _, stream = name.rpartition("_")
    return (metric, stream) if metric and stream in (*STREAMS, CALIBRATED) else (name, None)


def ndcg_places(name: str) -> int | None:
    """Return k of ``NDCG@k``, ``NDCG(k)`` or ``NDCG(k=k)``; None for other names."""
    ndcg = _NDCG.fullmatch(name)
    return int(ndcg[1] or ndcg[2] or 1) if ndcg else None
