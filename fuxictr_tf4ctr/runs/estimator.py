"""Any model of the registry as a scikit-learn classifier of frames and arrays."""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from fuxictr_tf4ctr.datasets.guessing import ColumnGuess, guess_columns
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import unknown
from fuxictr_tf4ctr.registry import find_model
from fuxictr_tf4ctr.runs.experiment import run_experiment
from fuxictr_tf4ctr.runs.loading import LoadedRun, load_run
from fuxictr_tf4ctr.settings.model_keys import batch_norms
from fuxictr_tf4ctr.settings.reading import validated
from fuxictr_tf4ctr.settings.writing import sized_to

_EXPID = "estimator"
# How numpy and pandas write an object that stands for none.
_MISSING = ("None", "nan", "NaT", "<NA>")


class TwinClassifier(ClassifierMixin, BaseEstimator):
    """A CTR model that is fitted to a frame, for pipelines, searches and cross validation.

    What the columns are is guessed as ``fuxictr init`` does: floats are numbers and standardised;
    texts, categories and booleans are ids with embeddings, or sequences where they are joined by a
    separator; whole numbers are either. A part of the rows is held out to decide when to stop, by
    logloss. What is fitted is a run of ``fuxictr run``, in memory: it can be pickled and needs no
    files.

    Args:
        model: Name of a model of the registry.
        categorical: Names, or positions in an array, of columns that are ids, whatever they look
            like; one that is taken for ids and is an amount is to be given as floats.
        epochs: The most epochs to train.
        batch_size: Rows per step; None takes a hundredth of the rows, from 16 to 4096.
        learning_rate: Step size of the optimizer.
        embedding_dim: Embedding dim D.
        validation_fraction: Share of each class that is held out.
        settings: Further settings of the experiment by key, as in YAML.
        random_state: Seed of everything random.

    Attributes:
        classes_: The two labels, sorted.
        metrics_: AUC and logloss on the rows held out.

    Raises:
        SettingsError: From ``fit``: a setting is not valid.
        ValueError: Rows that cannot be learned from; as scikit-learn's classifiers.

    Example:
        >>> frame = pl.DataFrame({"item": ["a", "b"] * 50, "price": [1.0, 2.0] * 50})
        >>> click = [1, 0] * 50
        >>> classifier = TwinClassifier("TF4CTR_DeepFM", epochs=3).fit(frame, click)
        >>> classifier.predict_proba(frame[:3]).shape
        (3, 2)
    """

    def __init__(
        self,
        model: str = "TF4CTR_DCNv2",
        *,
        categorical: Sequence[str | int] = (),
        epochs: int = 10,
        batch_size: int | None = None,
        learning_rate: float = 1e-3,
        embedding_dim: int = 16,
        validation_fraction: float = 0.1,
        settings: Mapping[str, Any] | None = None,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.categorical = categorical
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.embedding_dim = embedding_dim
        self.validation_fraction = validation_fraction
        self.settings = settings
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "TwinClassifier":
        """Train on rows [N, columns] of a pandas or polars frame or an array, and labels [N]."""
        columns = self._columns(X, y)
        labels = column_or_1d(y, warn=True)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) > 2:
            raise ValueError(
                "Only binary classification is supported. "
                f"The type of the target is {type_of_target(labels)}."
            )
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class, {self.classes_[0]!r}; two are needed")
        ids = {f"c{self._position(column)}" for column in self.categorical}
        self._guesses = guess_columns(columns, ids=ids)
        frame = self._encodable(columns).with_columns(label=pl.Series(codes.astype(np.float64)))
        with TemporaryDirectory() as folder:
            self._files = self._train(frame, Path(folder), self._held_out(codes))
        self._load()
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities [N, 2] of both classes."""
        check_is_fitted(self, "classes_")
        scores = self._run.predict_frame(self._encodable(self._columns(X)))
        return np.stack([1 - scores, scores], axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Return the likelier class of each row, [N]."""
        likelier = self.predict_proba(X).argmax(axis=1)
        return self.classes_[likelier]

    def _columns(self, X: Any, y: Any = None) -> pl.DataFrame:
        """Return the columns, checked as scikit-learn does, under names of our own."""
        kind = {} if y is None else {"y": y}
        if isinstance(X, pl.LazyFrame):
            X = X.collect()
        if hasattr(X, "columns"):
            validate_data(self, X, **kind, reset=y is not None, skip_check_array=True)
            columns = X.get_columns() if isinstance(X, pl.DataFrame) else _of_pandas(X)
            if y is not None and len(y) != len(X):
                raise ValueError(f"X has {len(X)} rows, y {len(y)}")
        else:
            checked = validate_data(self, X, **kind, reset=y is not None, dtype=None)
            columns = [_of_array(each) for each in (checked if y is None else checked[0]).T]
        frame = pl.DataFrame([each.alias(f"c{i}") for i, each in enumerate(columns)])
        for name in frame.columns:
            column = frame[name]
            numbers = column.cast(pl.Float64).to_numpy() if column.dtype.is_numeric() else ()
            if not np.isfinite(numbers).all():
                raise ValueError(f"Input X contains NaN or infinity in column {name[1:]}")
        return frame

    def _position(self, column: str | int) -> int:
        if isinstance(column, str):
            names = list(getattr(self, "feature_names_in_", ()))
            if column not in names:
                raise SettingsError(unknown("categorical column", column, names))
            return names.index(column)
        if not 0 <= column < self.n_features_in_:
            raise SettingsError(f"categorical column {column}: X has {self.n_features_in_} columns")
        return column

    def _encodable(self, frame: pl.DataFrame) -> pl.DataFrame:
        return frame.select(_as_declared(frame[guess.name], guess) for guess in self._guesses)

    def _held_out(self, codes: np.ndarray) -> np.ndarray:
        """Draw rows of both classes to hold out; all rows where a class has no two."""
        if not 0 < self.validation_fraction < 1:
            raise SettingsError(
                f"validation_fraction={self.validation_fraction!r} must be between 0 and 1"
            )
        random = np.random.default_rng(self.random_state)
        drawn = []
        for rows in (np.flatnonzero(codes == code) for code in (0, 1)):
            if len(rows) < 2:
                return np.arange(len(codes))
            count = max(1, round(self.validation_fraction * len(rows)))
            drawn.append(random.permutation(rows)[:count])
        return np.sort(np.concatenate(drawn))

    def _train(self, frame: pl.DataFrame, folder: Path, held_out: np.ndarray) -> dict[str, bytes]:
        """Run the experiment in a folder and return the files of the run that scoring needs."""
        kept = np.ones(frame.height, bool)
        kept[held_out] = len(held_out) == frame.height
        train, valid = frame.filter(pl.Series(kept)), frame[held_out]
        train.write_parquet(folder / "train.parquet")
        valid.write_parquet(folder / "valid.parquet")
        batch_size = self.batch_size or sized_to(train.height)["batch_size"]
        norms = batch_norms(self.settings or {}, find_model(self.model))
        if norms and self.batch_size is None and train.height % batch_size == 1:
            batch_size += 1  # batch norm cannot train on one row
        params = {
            "model": self.model, "dataset_id": "frame", "data_format": "parquet",
            "data_root": str(folder / "data"), "model_root": str(folder / "runs"),
            "train_data": str(folder / "train.parquet"),
            "valid_data": str(folder / "valid.parquet"),
            "min_categr_count": 1, "label_col": {"name": "label", "dtype": "float"},
            "feature_cols": [
                {**guess.entry, "dtype": "float" if guess.kind == "number" else "str"}
                for guess in self._guesses
            ],
            "task": "binary_classification", "loss": "binary_crossentropy", "optimizer": "adam",
            "metrics": ["AUC", "logloss"], "monitor": "logloss", "monitor_mode": "min",
            "epochs": self.epochs, "batch_size": batch_size, "learning_rate": self.learning_rate,
            "embedding_dim": self.embedding_dim, "seed": self.random_state, "verbose": 0,
        }  # fmt: skip
        with redirect_stderr(io.StringIO()):  # the log of the run
            settings = validated(_EXPID, params | dict(self.settings or {}), folder)
            record = run_experiment(settings)
        self.metrics_ = dict(record.valid)
        kept_files = [record.json_file, record.checkpoint, *record.schema_folder.iterdir()]
        return {str(file.relative_to(record.folder)): file.read_bytes() for file in kept_files}

    def _load(self) -> None:
        with TemporaryDirectory() as folder:
            for name, content in self._files.items():
                file = Path(folder, name)
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(content)
            self._run: LoadedRun = load_run(folder)
            _ = self._run.row_encoder  # read while its files are there

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_files" in state:
            self._load()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.string = tags.input_tags.categorical = True
        return tags


def _of_pandas(frame: Any) -> list[pl.Series]:
    columns = (frame.iloc[:, i] for i in range(frame.shape[1]))
    return [
        _of_array(column.to_numpy()) if column.dtype == object else pl.from_pandas(column)
        for column in columns
    ]


def _of_array(values: np.ndarray) -> pl.Series:
    """Take objects for truth values or numbers where all are, else for texts."""
    if values.dtype.kind not in "OSU":
        return pl.Series(values)
    if all(isinstance(each, int | float | np.number) for each in values):
        return pl.Series(values.tolist(), strict=False)
    missing = [not isinstance(each, str) and str(each) in _MISSING for each in values]
    known = [None if no else each for each, no in zip(values, missing, strict=True)]
    if all(isinstance(each, bool | np.bool_) for each in known if each is not None):
        return pl.Series(known, dtype=pl.Boolean)
    return pl.Series([None if each is None else str(each) for each in known], dtype=pl.String)


def _as_declared(values: pl.Series, guess: ColumnGuess) -> pl.Series:
    if guess.kind == "number":
        return values.cast(pl.Float64)
    if isinstance(values.dtype, pl.List):
        return values.cast(pl.List(pl.String)).list.join(guess.splitter)
    # The number 7 is the id "7", also where it comes as 7.0.
    return (values.cast(pl.Int64) if guess.dtype == "int" else values).cast(pl.String)


def train(model: str, frame: Any, label: str, **options: Any) -> TwinClassifier:
    """Fit a model to a frame in one line.

    Args:
        model: Name of a model of the registry.
        frame: Rows of a pandas or polars frame, the label among its columns.
        label: Name of the column to predict.
        **options: Those of :class:`TwinClassifier`.

    Raises:
        SettingsError: There is no such column, or a setting is not valid.

    Example:
        >>> frame = pl.DataFrame({"item": ["a", "b"] * 50, "click": [1, 0] * 50})
        >>> train("TF4CTR_DeepFM", frame, label="click", epochs=2).classes_.tolist()
        [0, 1]
    """
    if label not in frame.columns:
        raise SettingsError(unknown("label", label, list(frame.columns)))
    names = [name for name in frame.columns if name != label]
    return TwinClassifier(model, **options).fit(frame[names], frame[label].to_numpy())
