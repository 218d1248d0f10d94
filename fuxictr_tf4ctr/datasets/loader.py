"""Batches from encoded files, by the contract of FuxiCTR's ``data_loader`` hook."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from torch import Tensor

from fuxictr_tf4ctr.datasets.columns import typed_columns
from fuxictr_tf4ctr.datasets.h5 import part_files, read_columns
from fuxictr_tf4ctr.errors import DataError, SettingsError

LOG = logging.getLogger(__name__)


class H5DataLoader:
    """Serve one split of an encoded data set in batches, from memory.

    Training rows come in a new order each epoch, fixed by ``seed`` and ``epoch`` alone: the same
    on every platform, and after a resume. Validation and test rows keep the file's order.

    Args:
        feature_map: FuxiCTR's feature map; its features and labels name the columns.
        data_path: An h5 file, with or without its suffix, or a folder of part files.
        split: "train", "valid" or "test".
        batch_size: Rows per batch; the last batch holds what is left.
        shuffle: Whether to shuffle; heeded for "train" only.
        seed: Seed of the row order.
        task: FuxiCTR's task; labels must be 0 or 1 for "binary_classification".
        **kwargs: FuxiCTR passes all its parameters; the others are not used.

    Attributes:
        epoch: Number of the epoch the next iteration serves, from 0; set it to resume.
        num_samples: Rows of the split.
        num_blocks: Files of the split.
        num_batches: Batches per epoch.

    Raises:
        DataError: The file is unreadable or disagrees with the feature map.
        SettingsError: ``batch_size`` is not a positive integer.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        data_path: str | Path,
        split: str = "train",
        batch_size: int = 32,
        shuffle: bool = False,
        seed: int = 0,
        task: str = "binary_classification",
        **kwargs: Any,
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise SettingsError(f"batch_size={batch_size!r} must be an integer >= 1")
        self.feature_map = feature_map
        self.split = split
        self.batch_size = batch_size
        self.shuffle = shuffle and split == "train"
        self.seed = seed
        self.epoch = 0
        files = part_files(data_path)
        self._columns = _load(files, feature_map, binary=task == "binary_classification")
        self.num_samples = len(next(iter(self._columns.values())))
        self.num_blocks = len(files)
        self.num_batches = -(-self.num_samples // batch_size)
        LOG.info("Loaded %s: %d rows from %s", split, self.num_samples, data_path)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Start an epoch.

        Yields:
            Column -> tensor: ids int64, as FuxiCTR's loaders give them, numbers and labels
            float32; [B] for scalars, [B, max_len] for sequences, [B, pretrain_dim] for embedding
            features.
        """
        order = self._row_order() if self.shuffle else None
        self.epoch += 1
        return self._batches(order)

    def _row_order(self) -> Tensor:
        # NumPy's PCG64 gives the same stream on every platform; torch's depends on the device.
        generator = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        return torch.from_numpy(generator.permutation(self.num_samples))

    def _batches(self, order: Tensor | None) -> Iterator[dict[str, Tensor]]:
        for start in range(0, self.num_samples, self.batch_size):
            rows = slice(start, start + self.batch_size)
            if order is not None:
                rows = order[rows]
            yield {name: _widened(column[rows]) for name, column in self._columns.items()}


def _widened(values: Tensor) -> Tensor:
    """Give ids the type any layer can look up: torch takes uint8 for a mask, int16 not at all."""
    return values if values.is_floating_point() else values.long()


def _load(files: list[Path], feature_map: FeatureMap, *, binary: bool) -> dict[str, Tensor]:
    names = [*feature_map.features, *feature_map.labels]
    if not feature_map.labels:
        raise DataError("the feature map names no label; set label_col")
    matrix_index = _matrix_index(feature_map)
    parts = [
        typed_columns(file, read_columns(file, names, matrix_index), feature_map, binary=binary)
        for file in files
    ]
    return {
        name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in names
    }


def _matrix_index(feature_map: FeatureMap) -> dict[str, int | list[int]]:
    """Say where each column lies in a FuxiCTR 1.x matrix: its feature map says, labels are last."""
    index = {name: spec["index"] for name, spec in feature_map.features.items() if "index" in spec}
    labels = len(feature_map.labels)
    return index | {name: at - labels for at, name in enumerate(feature_map.labels)}
