"""FuxiCTR's git main of 2026 under the interface of its wheel, whose processor fits from counts.

Git's processor hands every column's values to its tokenizer and normalizer. Here it is handed the
counts, and those two take them. Vocabularies are the wheel's: tokens by falling count, ties by the
token (git leaves ties in the order of the data), whole numbers ascending.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from fuxictr.preprocess import feature_processor
from fuxictr.preprocess import normalizer as fuxictr_normalizer
from fuxictr.preprocess import tokenizer as fuxictr_tokenizer
from sklearn.preprocessing import MinMaxScaler, StandardScaler


class Tokenizer(fuxictr_tokenizer.Tokenizer):
    """Git's tokenizer with the order of the wheel's vocabularies."""

    def fit_on_texts(self, series: Mapping[str, Any]) -> None:
        """Take a column's counts in place of its values."""
        self.max_len = self.max_len or series.get("max_len", 0)
        self.build_vocab(series["value_counts"])

    def build_vocab(self, word_counts: Mapping[Any, int]) -> None:
        """Number the tokens that are frequent enough.

        Raises:
            IndexError: No token is, as with the wheel.
        """
        ordered = sorted(word_counts.items(), key=lambda item: (-item[1], item[0]))
        kept = [(t, n) for t, n in ordered if n >= self._min_freq and t != self._na_value]
        if not isinstance(kept[0][0], str):
            kept.sort()
        super().build_vocab(_Ordered(kept))

    def update_vocab(self, word_list: Any) -> None:
        """Add tokens, in their order."""
        super().update_vocab(sorted(word_list))


class Normalizer(fuxictr_normalizer.Normalizer):
    """Git's normalizer, fitted from statistics."""

    def fit(self, X: Any) -> None:
        """Take a column's statistics in place of its values."""
        if not self.callable:
            self.fit_from_stats(X["min"], X["max"], X["mean"], X["std"], X["count"])

    def fit_from_stats(
        self, min_value: float, max_value: float, mean: float, std: float, count: int
    ) -> None:
        """Set the scaler that the values would have given."""
        if isinstance(self.normalizer, MinMaxScaler):
            self.normalizer.fit(np.array([[float(min_value or 0)], [float(max_value or 0)]]))
        elif isinstance(self.normalizer, StandardScaler):
            self.normalizer.fit(np.zeros((1, 1)))
            self.normalizer.mean_ = np.array([mean])
            self.normalizer.scale_ = np.array([std or 1.0])
            self.normalizer.var_ = self.normalizer.scale_**2
            self.normalizer.n_samples_seen_ = count


class FitsFromCounts:
    """Mixed in before git's FeatureProcessor: fits from ``statistics`` as the wheel's does."""

    statistics: Mapping[str, Any]

    def fit(self, train_ddf: Any, meta_ddf: Any = None, **options: Any) -> None:
        """Fit all columns; the frames are not looked at."""
        with _in_place():
            super().fit(_Counted(self.statistics), **options)

    def fit_meta_col(self, col: dict[str, Any]) -> None:
        """Fit a meta column, whose vocabulary git makes while it encodes."""
        super().fit_meta_col(col)
        if col.get("remap", True):
            tokenizer = self.processor_dict[f"{col['name']}::tokenizer"]
            tokenizer.build_vocab(self.statistics[col["name"]]["value_counts"])


class _Ordered(list):
    """Counts whose order stands."""

    def most_common(self) -> "_Ordered":
        return self


class _Counted:
    """What git takes for the training rows: each column is its statistics."""

    def __init__(self, statistics: Mapping[str, Any], name: str = "") -> None:
        self._statistics = statistics
        self._name = name

    def select(self, name: str) -> "_Counted":
        return _Counted(self._statistics, name)

    def collect(self) -> "_Counted":
        return self

    def to_series(self) -> "_Counted":
        return self

    def to_pandas(self) -> Any:
        column = self._statistics.get(self._name, {})
        return column if "value_counts" in column else self

    def dropna(self) -> "_Counted":
        return self

    @property
    def values(self) -> Mapping[str, Any]:
        return self._statistics[self._name]


@contextmanager
def _in_place() -> Iterator[None]:
    """Have git's processor make our tokenizers and normalizers."""
    before = feature_processor.Tokenizer, feature_processor.Normalizer
    feature_processor.Tokenizer, feature_processor.Normalizer = Tokenizer, Normalizer
    try:
        yield
    finally:
        feature_processor.Tokenizer, feature_processor.Normalizer = before
