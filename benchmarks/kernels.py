"""Operations and kernels that one training step dispatches, counted without a GPU.

    python benchmarks/kernels.py --name after

counts the exact step of TF4CTR_DCNv2 on the demo data and of TF4CTR (SER, WSF) on rows of Frappe's
and of Criteo's shape, on the CPU and on the device ``meta``, where the step goes the way it goes on
a GPU. Operations are all that the dispatcher sees; kernels are those of them that compute, not
views and the like. The counts go to ``benchmarks/results/kernels.json`` under the name given.
"""

import argparse
import copy
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from fuxictr.pytorch.models import BaseModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from training_speed import CRITEO_VOCABULARY, FRAPPE_VOCABULARY, _made

import model_zoo
from fuxictr_tf4ctr.datasets import H5DataLoader, encode_dataset, load_feature_map
from fuxictr_tf4ctr.settings.reading import load_settings
from fuxictr_tf4ctr.training.losses import Losses
from fuxictr_tf4ctr.training.step import training_step

RESULTS = Path(__file__).resolve().parent / "results" / "kernels.json"
VOCABULARIES = {
    "frappe": FRAPPE_VOCABULARY,
    "criteo": [max(size // 100, 4) for size in CRITEO_VOCABULARY],  # 39 fields
}
SHAPES = ("demo", *VOCABULARIES)
# Operations beside views that start no kernel.
_NO_KERNEL = ("aten.empty", "aten.lift_fresh", "aten._unsafe_view", "aten.detach", "profiler.")


class Counts(TorchDispatchMode):
    """Counts what is dispatched while in context.

    Attributes:
        operations: All operations by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self._views: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Count an operation and let it be done."""
        self.operations[str(func)] += 1
        if func.is_view:
            self._views.add(str(func))
        return func(*args, **(kwargs or {}))

    @property
    def kernels(self) -> int:
        """Operations that compute."""
        return sum(
            count
            for name, count in self.operations.items()
            if name not in self._views and not name.startswith(_NO_KERNEL)
        )


def main() -> None:
    """Count all shapes and add the counts to the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--name", required=True, help="what the counts are of, such as a commit")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        results[arguments.name] = {shape: counted(shape, Path(folder)) for shape in SHAPES}
    print(json.dumps(results[arguments.name], indent=2))
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


def counted(shape: str, folder: Path) -> dict[str, dict[str, int]]:
    """Count the third step of a model on rows of one shape, on the CPU and as on a GPU."""
    return {
        "cpu": _counts(*_demo(folder) if shape == "demo" else _drawn(shape, folder)),
        "gpu": _counts(*_demo(folder) if shape == "demo" else _drawn(shape, folder), on_gpu=True),
    }


def _demo(folder: Path) -> tuple[BaseModel, H5DataLoader]:
    places = {"data_root": str(folder), "model_root": str(folder), "verbose": 0}
    settings = load_settings("TF4CTR_DCNv2_demo", overrides=places)
    dataset = encode_dataset(settings.params)
    feature_map = load_feature_map(dataset, settings.params)
    model = settings.model_class(feature_map, **settings.params)
    return model, H5DataLoader(feature_map, dataset.train, batch_size=64)


def _drawn(shape: str, folder: Path) -> tuple[BaseModel, H5DataLoader]:
    with tempfile.TemporaryDirectory(dir=folder) as own:
        feature_map, path = _made(Path(own) / shape, 4 * 64, VOCABULARIES[shape])
        model = model_zoo.TF4CTR(
            feature_map, embedding_dim=16, simple_hidden_units=[400] * 2,
            complex_hidden_units=[400] * 3, embedding_regularizer=1e-5, net_dropout=0.1,
            batch_norm=True, model_root=str(folder), verbose=0,
        )  # fmt: skip
        return model, H5DataLoader(feature_map, path, batch_size=64, storage="memory")


def _counts(model: BaseModel, batches: H5DataLoader, on_gpu: bool = False) -> dict[str, int]:
    served = list(islice(batches, 3))
    with as_on_gpu() if on_gpu else nullcontext():
        if on_gpu:
            move(model)
            served = [on_meta(batch) for batch in served]
        model._max_gradient_norm = 10.0
        model.train()
        losses = Losses(model.device)
        with training_step(model) as step:
            for batch in served:
                with Counts() as counts:
                    losses.add(step(batch), step.terms, "")
    return {"operations": counts.operations.total(), "kernels": counts.kernels}


def move(model: BaseModel) -> None:
    """Move a model, its optimizer made anew, to the device that has shapes and no values."""
    model.device = torch.device("meta")
    for module in model.modules():  # the models of a pair
        if isinstance(module, BaseModel):
            module.device = model.device
    model.to("meta")
    old = model.optimizer
    model.optimizer = type(old)(model.parameters(), lr=old.param_groups[0]["lr"])


def on_meta(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch of the same kind on that device."""
    moved = copy.copy(batch)
    moved.update({name: column.to("meta") for name, column in batch.items()})
    return moved


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Let the device ``meta`` have the kernels a GPU has: of dropout, and of the optimizers.

    Autocast casts nothing there.
    """
    dropout, module = F.dropout, sys.modules["torch.optim.optimizer"]
    autocast = torch.autocast
    devices = module._get_fused_kernels_supported_devices
    F.dropout = lambda x, p=0.5, training=True, inplace=False: (
        torch.native_dropout(x, p, training)[0] if training else x
    )
    module._get_fused_kernels_supported_devices = lambda: [*devices(), "meta"]
    torch.autocast = lambda device, *_: nullcontext()
    try:
        yield
    finally:
        F.dropout, module._get_fused_kernels_supported_devices = dropout, devices
        torch.autocast = autocast


if __name__ == "__main__":
    main()
