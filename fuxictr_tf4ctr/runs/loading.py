"""A finished run taken up again: its settings, its feature map, its best weights, its data."""

import json
import logging
import math
import os
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from torch.utils._python_dispatch import TorchDispatchMode

from fuxictr_tf4ctr.datasets import (
    EncodedDataset,
    H5DataLoader,
    find_encoded,
    load_feature_map,
)
from fuxictr_tf4ctr.datasets.fitting import RARE
from fuxictr_tf4ctr.datasets.new_rows import RowEncoder
from fuxictr_tf4ctr.distributed.cost import machine_memory
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.files import held, whole_file
from fuxictr_tf4ctr.metrics.calibration import (
    METHODS,
    add_calibration,
    calibrated_metrics,
    correct_sampling,
)
from fuxictr_tf4ctr.registry import find_model
from fuxictr_tf4ctr.runs.records import RunRecord, read_run
from fuxictr_tf4ctr.schema import (
    NUMBER,
    POSITIVE,
    SHARE,
    Key,
    ListOf,
    Record,
    one_of,
    read_json,
)
from fuxictr_tf4ctr.settings.model_keys import understood
from fuxictr_tf4ctr.settings.reading import Settings
from fuxictr_tf4ctr.training import load_weights
from fuxictr_tf4ctr.training.checkpoints import merge_weights
from fuxictr_tf4ctr.training.shards import UnmadeTable, tables_unmade

if TYPE_CHECKING:
    import numpy as np

LOG = logging.getLogger(__name__)


class _Correction(Record):
    """What :func:`fit_calibration` returned, which has other keys for each method."""

    def problems(self, value: Any, where: str = "") -> list[str]:
        if found := super().problems(value, where):
            return found
        x, y = value.get("x") or [], value.get("y") or []
        curve = x == sorted(set(x)) and len(x) == len(y) > 0
        right = value.get("temperature") if value["method"] == "temperature" else curve
        needs = "a temperature, or x in ascending order with as many y"
        return [] if right else [f"{where}method {value['method']} needs {needs}"]


_CALIBRATION = _Correction(
    {
        "method": one_of(*METHODS),
        "temperature": Key(POSITIVE),
        "x": Key(ListOf(NUMBER)),
        "y": Key(ListOf(SHARE)),
    }
)
# What makes tensors of a size.
_MAKING = {torch.ops.aten.empty, torch.ops.aten.zeros, torch.ops.aten.ones, torch.ops.aten.full}
_SCHEMA_FILES = ("feature_map.json", "feature_vocab.json", "encoder.json", RARE)


@dataclass(frozen=True)
class LoadedRun:
    """A run with its model, ready to score.

    Attributes:
        record: Its run.json.
        settings: Its settings.
        feature_map: The feature map it was trained with.
        model: The model with its best weights, in evaluation mode.
    """

    record: RunRecord
    settings: Settings
    feature_map: FeatureMap
    model: BaseModel

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.record.folder

    @cached_property
    def dataset(self) -> EncodedDataset:
        """The encoded data the run was trained and evaluated on.

        Raises:
            DataError: They are gone, or were made anew from other data or with other settings.
        """
        dataset = find_encoded(self.settings.params, self.record.data.get("folder"))
        if dataset.fingerprint != self.record.data["fingerprint"]:
            raise DataError(
                f"{dataset.data_dir}: holds other data, or data encoded with other settings, than "
                f"{self.folder} was trained on; encode them again as its run.json says"
            )
        return dataset

    @cached_property
    def row_encoder(self) -> RowEncoder:
        """What encodes raw rows for the model; its counts are of all rows so far.

        Raises:
            DataError: The run keeps no fitted encoder.
            SettingsError: The data set's own processor class is gone or has changed.
        """
        return RowEncoder(self.record.schema_folder, self.feature_map)

    @property
    def calibrated(self) -> bool:
        """Whether its model returns ``y_calibrated`` beside ``y_pred``."""
        return self.record.calibration_file.is_file()

    @property
    def metrics(self) -> list[str]:
        """The metrics of its settings, and those before and after calibration if it has one."""
        more = calibrated_metrics() if self.calibrated else []
        return list(dict.fromkeys([*self.model.validation_metrics, *more]))

    def loader(self, split: str, batch_size: int | None = None) -> H5DataLoader:
        """Serve a split of the run's encoded data, in the order of the file.

        Args:
            split: "train", "valid" or "test".
            batch_size: Rows per batch; the run's own where None.

        Raises:
            SettingsError: The run has no such split.
            DataError: The encoded data are gone or changed.
        """
        path = getattr(self.dataset, split, None)
        if path is None:
            there = ", ".join(self.dataset.rows)
            raise SettingsError(f"{self.folder}: its data have no {split} split; there: {there}")
        return H5DataLoader(
            self.feature_map,
            path,
            split=split,
            batch_size=batch_size or self.settings["batch_size"],
            task=self.settings["task"],
            gpu=self.settings["gpu"],
        )

    def predict_frame(self, frame: Any, streams: bool = False) -> "np.ndarray | dict[str, Any]":
        """Score the raw rows of a frame, encoded with the run's vocabularies.

        Args:
            frame: A polars or pandas frame with the columns the run's raw data had; the label is
                not needed.
            streams: Whether to return the scores of both streams as well.

        Returns:
            [rows] float64 probabilities in the order of the rows; with ``streams`` a dict of
            ``y_pred``, ``y_simple`` and ``y_complex``, and ``y_calibrated`` of a calibrated run;
            of a model of several labels a dict of ``<label>_pred`` for each.

        Raises:
            DataError: A column is missing or of another type, or a number is not finite.
            SettingsError: The model does not score its streams.
        """
        from fuxictr_tf4ctr.runs.scoring import score_frame

        scores = score_frame(self, frame, streams)
        return scores if streams or "y_pred" not in scores else scores["y_pred"]


def load_run(
    folder: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    checkout: str | os.PathLike[str] | None = None,
) -> LoadedRun:
    """Load a run: its record, settings, feature map and best weights.

    Args:
        folder: The folder of the run, which holds run.json.
        device: Where the model computes: "cpu", "cuda" or "cuda:1".
        checkout: Root of a FuxiCTR checkout that the model comes from, if any.

    Raises:
        SettingsError: There is no such device, or the model is not installed.
        DataError: The folder holds no run of this version, or one without a checkpoint.
    """
    record = read_run(Path(folder))
    if not record.checkpoint.is_file():
        raise DataError(
            f"{folder}: the run has no checkpoint {record.checkpoint.name} (it is "
            f"{record.status}); go on with it by fuxictr run --resume"
        )
    if record.status != "finished":
        LOG.warning("%s: the run is %s; its best weights so far", folder, record.status)
    params = record.settings | {"gpu": _gpu_index(device)}
    model_class = find_model(params["model"], checkout)
    params, _ = understood(params, model_class)
    settings = Settings(record.expid, model_class, MappingProxyType(params), record.schema_folder)
    feature_map = _feature_map(record, params)
    return LoadedRun(record, settings, feature_map, _model(settings, feature_map, record))


load = load_run  # the public name: fuxictr_tf4ctr.load(run)


def merge_run(folder: Path) -> tuple[Path, bool]:
    """Put the divided tables of a finished run into the file of its other weights.

    Returns:
        The file, and whether tables were divided.

    Raises:
        SettingsError: The run is not finished, or another process works on it.
        DataError: There is no such run, or its weights are damaged.
        StorageError: The disk is too full.
    """
    record = read_run(folder)
    if record.status != "finished":
        raise SettingsError(
            f"{folder}: the run is {record.status}, and would miss its divided tables; finish it "
            "by fuxictr run --resume"
        )
    with held(folder / ".lock") as ours:
        if not ours:
            raise SettingsError(f"{folder}: another process works on the run")
        return record.checkpoint, merge_weights(record.checkpoint)


def trained_model(settings: Settings, record: RunRecord) -> BaseModel:
    """Return the model of other settings with weights and vocabularies of a run, on the CPU.

    Raises:
        DataError: The run has no weights, or they do not fit the model.
    """
    params = {**settings.params, "dataset_id": record.settings["dataset_id"], "gpu": -1}
    settings = replace(settings, params=params)
    return _model(settings, _feature_map(record, params), record)


def keep_schema(dataset: EncodedDataset, record: RunRecord) -> None:
    """Keep in a run's folder what its model needs beside its weights.

    The feature map, the vocabularies, pretrained embeddings and the fitted encoder stay with the
    run, whatever becomes of the encoded data set.
    """
    record.schema_folder.mkdir(exist_ok=True)
    content = json.loads(dataset.feature_map_path.read_text(encoding="utf-8"))
    specs = [spec for entry in content.get("features", ()) for spec in entry.values()]
    pretrained = [spec["pretrained_emb"] for spec in specs if "pretrained_emb" in spec]
    for name in (*_SCHEMA_FILES, *pretrained):
        source, target = dataset.data_dir / name, record.schema_folder / name
        if source.is_file() and not target.exists():
            _link_or_copy(source, target)


def _link_or_copy(source: Path, target: Path) -> None:
    # An encoding is only ever replaced file by file, never written into: a link is as good as a
    # copy, and a hundred runs on a data set of a million tokens keep them once.
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as original, whole_file(target) as copy:
            shutil.copyfileobj(original, copy)


class WithinMemory(TorchDispatchMode):
    """While in context, refuse tensors beyond the machine's memory before any is asked for.

    Args:
        copies: How often the memory must hold each: for its gradient as well, say.
    """

    def __init__(self, copies: int = 1) -> None:
        super().__init__()
        self._asked, self._copies = 0, copies
        self._memory = machine_memory()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """See torch; only what makes tensors of a given size is looked at."""
        kwargs = kwargs or {}
        if function.overloadpacket in _MAKING:
            item = (kwargs.get("dtype") or torch.get_default_dtype()).itemsize
            self._asked += self._copies * item * math.prod(args[0])
            if self._asked > self._memory:
                raise SettingsError(
                    f"the model needs more than {self._asked / 2**30:,.0f} GiB for its weights"
                    f"{' and their training' if self._copies > 1 else ''}, this machine has "
                    f"{self._memory / 2**30:,.0f}: lower embedding_dim or hidden units, or raise "
                    "min_categr_count"
                )
        return function(*args, **kwargs)


def _gpu_index(device: str | torch.device) -> int:
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise SettingsError(f"device {device!r}: use cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return -1
    index = device.index or 0
    if device.type != "cuda" or index >= torch.cuda.device_count():
        raise SettingsError(f"device {str(device)!r} does not exist on this machine; use cpu")
    return index


def _feature_map(record: RunRecord, params: dict[str, Any]) -> FeatureMap:
    if not (record.schema_folder / "feature_map.json").is_file():
        raise DataError(
            f"{record.schema_folder}: the run keeps no feature map there, an earlier version "
            "wrote it; train it again"
        )
    return load_feature_map(record.schema_folder, params)


def _model(settings: Settings, feature_map: FeatureMap, record: RunRecord) -> BaseModel:
    # Weights are drawn at random, then replaced: the caller's random numbers are not touched. Of
    # tables that were divided, none is drawn, nor read before its rows are asked for.
    divided = record.settings.get("table_sharding") is not None
    with torch.random.fork_rng(), tables_unmade(noted=False) if divided else WithinMemory():
        model = settings.model_class(feature_map, **settings.params)
    unmade = [name for name, each in model.named_parameters() if isinstance(each, UnmadeTable)]
    model.model_dir, model.checkpoint = str(record.folder), str(record.checkpoint)
    load_weights(model, record.checkpoint)
    made = {name: each for name, each in model.state_dict().items() if name not in unmade}
    broken = [name for name, each in made.items() if not each.isfinite().all()]
    if broken:
        raise DataError(
            f"{record.checkpoint}: {broken[0]} holds numbers that are not finite, of "
            f"{len(broken)} such tensors; every score would be NaN: train again"
        )
    if settings.params.get("negative_sampling"):
        correct_sampling(model, settings["negative_sampling"])
    if record.calibration_file.is_file():
        add_calibration(model, read_json(record.calibration_file, _CALIBRATION, "train again"))
    return model.eval()
