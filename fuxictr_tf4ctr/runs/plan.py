"""What an experiment will need of every rank, found before any job starts.

The model is built and a step of it computed on tensors that have shapes and no memory, so a plan
takes seconds and a few hundred MB whatever the size of the tables.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fuxictr_tf4ctr.datasets import find_encoded, load_feature_map
from fuxictr_tf4ctr.datasets.blocks import row_bytes
from fuxictr_tf4ctr.datasets.feature_map import row_shape
from fuxictr_tf4ctr.distributed.cost import (
    Cost,
    Held,
    ShardingOptions,
    Workload,
    data_parallel,
    divided_tables,
)
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.settings.reading import Settings

# Bytes a second between GPUs of one host (NVLink of an H100 or H200, one way), and between hosts
# on Ethernet of 100 Gbit/s; what one such GPU computes and reads a second, in float32, at its peak.
WITHIN_HOST, BETWEEN_HOSTS = 300e9, 12.5e9
FLOPS, MEMORY = 67e12, 3.35e12


@dataclass(frozen=True)
class Plan:
    """What one rank needs; bytes, but for ``steps`` and the workload's numbers.

    Attributes:
        work: Sizes of the model and of a step.
        cost: Memory of weights, gradients and optimizer; traffic.
        divided: Whether the embedding tables are divided among the ranks.
        activations: What a step keeps from the forward for the backward pass.
        batch: The rows of a step, as the model receives them.
        flops: Floating-point operations of a step's matrix products.
        rows: Training rows.
        rows_bytes: What they take, held in memory.
        steps: Steps of an epoch.
        ranks: How many ranks there are.
        hosts: On how many hosts.
    """

    work: Workload
    cost: Cost
    divided: bool
    activations: int
    batch: int
    flops: int
    rows: int
    rows_bytes: int
    steps: int
    ranks: int
    hosts: int

    @property
    def memory(self) -> float:
        """Bytes a rank needs at the least; buffers of single operations come on top."""
        return self.cost.memory + self.activations + self.batch

    @property
    def network_seconds(self) -> float:
        """Seconds a step's messages take on the slowest link, if nothing else is done meanwhile."""
        speed = BETWEEN_HOSTS if self.hosts > 1 else WITHIN_HOST
        return self.cost.bytes_per_step / speed

    @property
    def gpu_seconds(self) -> float:
        """Seconds a GPU at its peak takes for a step's matrix products, and to pass over memory.

        Weights, gradients and optimizer state are read and written once, of divided tables none;
        activations are written and read.
        """
        passed = sum(self.cost.others) + (0 if self.divided else sum(self.cost.tables))
        return self.flops / FLOPS + 2 * (passed + self.activations) / MEMORY

    @property
    def seconds(self) -> float:
        """Seconds of a step at the least: messages travel while the GPU computes."""
        return max(self.gpu_seconds, self.network_seconds)

    def lines(self) -> list[str]:
        """Say what is needed, a line each."""
        link = "100 Gbit/s between hosts" if self.hosts > 1 else "NVLink, 300 GB/s"
        tables = "divided among the ranks" if self.divided else "whole on every rank"
        return [
            f"{self.rows:,} rows, {self.steps:,} steps an epoch, "
            f"{self.work.batch_size // self.ranks:,} rows of a step for each of {self.ranks} ranks",
            "",
            "memory of a rank                  weights   gradients   optimizer",
            f"embedding tables  {_held(self.cost.tables)}   {self.work.table_rows:,} rows, "
            f"{self.work.table_parameters:,} parameters, {tables}",
            f"other weights     {_held(self.cost.others)}   {self.work.other_parameters:,} "
            "parameters",
            f"activations       {_size(self.activations)}",
            f"batch             {_size(self.batch)}",
            f"together          {_size(self.memory)}   at the least",
            f"rows              {_size(self.rows_bytes)}   once on a host, unless streamed",
            "",
            "a step",
            f"network           {_time(self.network_seconds)}   "
            f"{_size(self.cost.bytes_per_step).strip()} from each rank, {link}",
            f"GPU               {_time(self.gpu_seconds)}   {self.flops / 1e9:,.1f} GFLOP of "
            "matrix products, then memory, at the peak of an H100",
            f"together          {_time(self.seconds)}   at the least: messages travel meanwhile",
            f"an epoch          {_time(self.steps * self.seconds)}",
        ]

    def problem(self, memory: float) -> str | None:
        """Say what does not fit into so many bytes a rank, and what to do; None where all does."""
        missing = self.memory - memory
        if missing <= 0:
            return None
        sizes = _size(self.memory).strip(), _size(missing).strip()
        text = f"a rank needs {sizes[0]}, {sizes[1]} more than it has: "
        others, tables = sum(self.cost.others), sum(self.cost.tables)
        without = others + self.activations + self.batch
        if others > memory:
            return text + "the weights beside the tables alone are more; take a smaller model"
        if not self.divided and without < memory:
            needed = math.ceil(tables / (memory - without))
            return text + (
                "divide the tables (table_sharding: row_wise) among about "
                f"{max(2, needed)} ranks or more, or take a smaller embedding_dim"
            )
        if self.divided and without < memory:
            needed = math.ceil(self.ranks * tables / (memory - without))
            return text + f"divide the tables among {needed} ranks or more"
        return text + "activations do not fit beside the model: take a smaller batch_size"


def plan(settings: Settings, ranks: int = 1, hosts: int = 1) -> Plan:
    """Compute what an experiment needs of every rank.

    Args:
        settings: Checked settings; the data set must be encoded.
        ranks: How many processes train together, with ``batch_size`` rows of a step in all.
        hosts: On how many hosts they are.

    Raises:
        SettingsError: The ranks do not divide a batch, there are fewer ranks than hosts, or what a
            step does depends on values.
        DataError: The data set is not encoded.
    """
    batch_size = settings["batch_size"]
    if ranks < hosts or batch_size % ranks:
        raise SettingsError(
            f"{ranks} ranks on {hosts} hosts cannot share batches of batch_size={batch_size}: "
            "every host needs a rank, and batch_size must be a multiple of the ranks"
        )
    dataset = find_encoded(settings.params)
    feature_map = load_feature_map(dataset, settings.params)
    try:
        with FakeTensorMode(), torch.random.fork_rng():
            step = _Step(_model(settings, feature_map), feature_map, batch_size // ranks)
    except DataDependentOutputException as error:
        raise SettingsError(
            f"a step of {settings['model']} with optimizer {settings['optimizer']} depends on "
            "values, and a plan has shapes alone: plan with another optimizer, or train some steps"
        ) from error
    sharding = ShardingOptions.from_params(settings.params)
    work = step.workload(batch_size)
    return Plan(
        work,
        divided_tables(work, ranks, sharding.optimizer) if sharding else data_parallel(work, ranks),
        sharding is not None,
        step.activations,
        step.batch_bytes,
        step.flops,
        dataset.rows["train"],
        dataset.rows["train"] * row_bytes(feature_map),
        math.ceil(dataset.rows["train"] / batch_size),
        ranks,
        hosts,
    )


def _model(settings: Settings, feature_map: FeatureMap) -> BaseModel:
    # Moving a model makes its tensors anew, which those without memory do not allow.
    stays = {"model_to_device": lambda self: None}
    cls = type(settings.model_class.__name__, (settings.model_class,), stays)
    return cls(feature_map, **{**settings.params, "gpu": -1})


class _Step:
    """One step of a model under :class:`FakeTensorMode`, and what was seen of it.

    Args:
        model: Compiled model.
        feature_map: Its features.
        rows: Rows of the batch.
    """

    def __init__(self, model: BaseModel, feature_map: FeatureMap, rows: int) -> None:
        self._model = model
        self._rows = rows
        layers = [each for each in model.modules() if isinstance(each, FeatureEmbeddingDict)]
        modules = (module for layer in layers for module in layer.embedding_layers.values())
        self._tables = [each for each in modules if isinstance(each, nn.Embedding)]
        batch = _batch(feature_map, rows)
        self.batch_bytes = sum(column.nbytes for column in batch.values())
        with FlopCounterMode(display=False) as counter:
            with self._lookups() as self._found, _kept(model) as kept:
                loss = model.add_loss(model(batch), model.get_labels(batch))
            self.activations = sum(kept.values())
            loss.backward()
        self.flops = counter.get_total_flops()
        model.optimizer.step()

    def workload(self, batch_size: int) -> Workload:
        """Return sizes of the model and of a step of so many rows in all."""
        weights = {id(table.weight): table.weight for table in self._tables}.values()
        all_parameters = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
        in_tables = sum(weight.numel() for weight in weights)
        states = self._model.optimizer.state.values()
        kept = sum(t.numel() for state in states for t in state.values() if isinstance(t, Tensor))
        return Workload(
            batch_size,
            sum(len(weight) for weight in weights),
            in_tables,
            sum(ids for ids, _ in self._found) / self._rows,
            sum(numbers for _, numbers in self._found) / self._rows,
            all_parameters - in_tables,
            round(kept / all_parameters, 3),
        )

    @contextmanager
    def _lookups(self) -> Iterator[list[tuple[int, int]]]:
        """Note ids and numbers of every look-up in a table while in context."""
        found: list[tuple[int, int]] = []

        def note(table: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found.append((inputs[0].numel(), output.numel()))

        hooks = [table.register_forward_hook(note) for table in self._tables]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()


@contextmanager
def _kept(model: nn.Module) -> Iterator[dict[int, int]]:
    """Note the bytes of what autograd keeps while in context, the model's own weights left out."""
    own = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept


def _batch(feature_map: FeatureMap, rows: int) -> dict[str, Tensor]:
    """Make a batch of the types and shapes that the loader serves."""
    columns = {}
    for name, spec in feature_map.features.items():
        dtype = torch.float32 if spec["type"] in ("numeric", "embedding") else torch.int64
        columns[name] = torch.zeros(rows, *row_shape(spec), dtype=dtype)
    return columns | {name: torch.zeros(rows) for name in feature_map.labels}


def _held(of: Held) -> str:
    return "  ".join(_size(each) for each in (sum(of), *of))


def _size(count: float) -> str:
    unit, name = next(
        (each for each in ((1e9, "GB"), (1e6, "MB")) if count >= each[0]), (1e3, "kB")
    )
    return f"{count / unit:7.1f} {name}"


def _time(seconds: float) -> str:
    return f"{seconds:8.1f} s" if seconds >= 1 else f"{1e3 * seconds:7.2f} ms"
