"""Embedding tables divided among ranks by TorchRec, where one device cannot hold them.

The model keeps FuxiCTR's embedding layers. Before one of them runs, a hook looks the ids of all its
fields up at once: TorchRec sends ids to the ranks that have their rows and embeddings back, and a
:class:`ShardedTable` in the place of each ``nn.Embedding`` hands them on. In the backward pass the
gradients go to the same ranks, which update their rows by a fused optimizer at once: nobody ever
has the gradient of a table. Gradients are added up over ranks as those of the other weights are.
"""

import logging
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from fuxictr_tf4ctr import files
from fuxictr_tf4ctr.distributed.cost import (
    PROCESS,
    ShardingOptions,
    Tables,
    Workload,
    divided_tables,
    machine_memory,
)
from fuxictr_tf4ctr.distributed.ranks import JoinedRanks
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.registry import overrides
from fuxictr_tf4ctr.training.shards import (
    Piece,
    Shards,
    UnmadeTable,
    begin_save,
    shards_folder,
    step_of,
    tables_unmade,
    write_shard,
)
from fuxictr_tf4ctr.training.tables import check_range, is_plain

# They warn of what is meant for TorchRec's own developers.
for _name in ("torchrec", "torch.fx._symbolic_trace"):
    logging.getLogger(_name).setLevel(logging.ERROR)

try:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
    from torchrec.distributed.comm_ops import set_gradient_division
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.storage_reservations import (
        FixedPercentageStorageReservation,
    )
    from torchrec.distributed.planner.types import ParameterConstraints, PlannerError
    from torchrec.distributed.types import ShardingEnv
except (ImportError, OSError) as error:  # OSError: fbgemm's libraries are for another PyTorch
    raise SettingsError(
        "table_sharding: TorchRec cannot be loaded, docs/scaling.md says which versions go "
        f"together: {error}"
    ) from error

LOG = logging.getLogger(__name__)

_OPTIMIZERS = {
    "sgd": EmbOptimType.EXACT_SGD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "row_wise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adam": EmbOptimType.ADAM,
}
# fbgemm's tables are a multiple of this wide; others get columns that nobody looks at.
_WIDTH_UNIT = 4
# Share of a GPU's memory that the plan leaves to the other weights and to activations.
_RESERVED = 0.25


class ShardedTable(nn.Module):
    """Stands for the table of one field; hands out what the hook of its layer has looked up.

    Args:
        table: The table it stands for.
    """

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.padding_idx = table.padding_idx
        self._found: tuple[Tensor, Tensor] | None = None

    def hand_out(self, ids: Tensor, embeddings: Tensor) -> None:
        """Note the embeddings of a batch: ids of any shape, and [*ids.shape, width]."""
        if self.padding_idx is not None:  # padding learns nothing
            padding = (ids == self.padding_idx).unsqueeze(-1)
            embeddings = torch.where(padding, embeddings.detach(), embeddings)
        self._found = ids, embeddings

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings of the ids that were looked up last."""
        found = self._found
        if found is None or (found[0] is not ids and not torch.equal(found[0], ids)):
            raise SettingsError(
                "table_sharding: the model looks rows of a table up beside FuxiCTR's embedding "
                "layers: leave table_sharding out"
            )
        return found[1]


@dataclass
class _Collection:
    """The tables of one layer that have one width, divided.

    Attributes:
        width: Columns of the tables.
        fields: Field -> what stands for its table.
        members: Table of the collection -> names its weights have in the model's state_dict.
        sharded: TorchRec's module.
    """

    width: int
    fields: dict[str, ShardedTable]
    members: dict[str, list[str]]
    sharded: Any = None

    def weights(self) -> Iterator[Piece]:
        for key, value in self.sharded.state_dict().items():
            for shard in value.local_shards():
                rows = shard.tensor.detach()[:, : self.width]
                yield Piece(self.members[_table(key)][0], shard.metadata.shard_offsets[0], rows)

    def optimizer_state(self) -> Iterator[Piece]:
        for key, values in self.sharded.fused_optimizer.state_dict()["state"].items():
            for name, value in values.items():
                for shard in value.local_shards():
                    piece = f"{self.members[_table(key)][0]}:{name.rpartition('.')[2]}"
                    yield Piece(piece, shard.metadata.shard_offsets[0], shard.tensor.detach())

    def look_up(self, inputs: Mapping[str, Tensor], rate: float) -> None:
        """Look the fields up that are among the inputs, [B] or [B, L] ids each."""
        ids = {name: inputs[name].long() for name in self.fields if name in inputs}
        if not ids:
            return
        for name, column in ids.items():
            check_range(column, self.fields[name].num_embeddings)
        if torch.is_grad_enabled():
            self._set_rate(rate)
        first = next(iter(ids.values()))
        rows = len(first)
        # TorchRec wants every field: one that is not there has no ids.
        per_row = [ids[name][:1].numel() if name in ids else 0 for name in self.fields]
        lengths = torch.tensor(per_row, dtype=torch.int32, device=first.device)
        found = self.sharded(
            KeyedJaggedTensor(
                keys=list(self.fields),
                values=torch.cat([column.flatten() for column in ids.values()]),
                lengths=lengths.repeat_interleave(rows),
                stride=rows,
            )
        ).wait()
        for name, column in ids.items():
            embeddings = found[name].values().view(*column.shape, -1)[..., : self.width]
            self.fields[name].hand_out(column, embeddings)

    def _set_rate(self, rate: float) -> None:
        optimizer = self.sharded.fused_optimizer
        if any(group["lr"] != rate for group in optimizer.param_groups):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()  # where TorchRec hands the rate on


class ShardedTables(Tables):
    """The tables of FuxiCTR's embedding layers of a model, divided among ranks.

    Pretrained embeddings, and tables beside those layers, stay whole on every rank. The model's
    ``state_dict`` lacks the divided tables: each rank writes and reads the rows it has, beside the
    file of the other weights.

    Args:
        model: Compiled model, built while :meth:`unmade`, from the same seed on every rank;
            afterwards it is on its device.
        ranks: All ranks; each calls this.
        options: How to divide, and to update.

    Raises:
        SettingsError: The model has optimizers or files of its own or no table to divide, a host or
            GPU has no room for its ranks' rows, or a rank does not see the folder of the run.
    """

    def __init__(self, model: BaseModel, ranks: JoinedRanks, options: ShardingOptions) -> None:
        self.ranks = ranks
        if overrides(model, "save_weights", "load_weights"):
            raise SettingsError(
                f"{type(model).__name__} writes its weights its own way, which would miss the "
                "tables: leave table_sharding out"
            )
        self._check_folder(Path(model.checkpoint))
        unmade: dict[str, UnmadeTable] = {}
        optimizer = getattr(model, "optimizer", None)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise SettingsError(
                f"{type(model).__name__} has optimizers of its own, which would miss the tables: "
                "leave table_sharding out"
            )
        rate = optimizer.param_groups[0]["lr"]
        self._collections: list[_Collection] = []
        tables: list[EmbeddingCollection] = []
        for prefix, layer in list(model.named_modules()):
            if type(layer) is FeatureEmbeddingDict:
                own = self._take_over(layer, prefix, tables, unmade)
                hook = partial(_look_up, own, optimizer, options.learning_rate / rate)
                layer.register_forward_pre_hook(hook, with_kwargs=True)
        if not tables:
            raise SettingsError(
                f"{type(model).__name__} has no table in FuxiCTR's embedding layers: leave "
                "table_sharding out"
            )
        self._check_used_once(model, unmade)
        _forget(optimizer, unmade)
        self._check_room(model, unmade, options)
        self._divide(tables, options, model.device)
        for piece in self._weights():
            unmade[piece.name].make_rows(piece.start, piece.rows)
        model.to(model.device)

    @staticmethod
    def unmade() -> AbstractContextManager[None]:
        """While in context, no table of a model that is built takes memory."""
        return tables_unmade()

    def save(self, path: Path | None, step: int, optimizer: bool) -> dict[str, Any]:
        folder = self.ranks.broadcast(lambda: begin_save(path, step))
        pieces = self.pieces() if optimizer else self._weights()
        self._by_all(lambda: write_shard(folder, self.ranks.rank, pieces))
        tables = {name: names[0] for names in self._names() for name in names}
        return {"save": folder.name, "ranks": self.ranks.size, "tables": tables}

    def load(self, path: Path | None, kept: Mapping[str, Any], optimizer: bool) -> None:
        path, kept = self.ranks.broadcast(lambda: (path, kept))
        if not kept:
            raise DataError(f"{path}: holds no divided tables: train again")

        def read() -> None:
            shards = Shards(path, kept)
            for piece in self.pieces() if optimizer else self._weights():
                if len(piece.rows):
                    shards.read(piece.name, piece.start, piece.rows)

        self._by_all(read)
        if optimizer:
            for collection in self._collections:
                with _quiet():  # Adam's steps, which TorchRec has in no state
                    collection.sharded.fused_optimizer.set_optimizer_step(step_of(kept))

    def pieces(self) -> list[Piece]:
        """Return the rows and the optimizer state that this rank has, not copied."""
        return [*self._weights(), *self._optimizer_state()]

    def _by_all(self, work: Callable[[], Any]) -> list[Any]:
        """Let every rank do its part, and return all results; what one raises, all raise."""
        try:
            result = work(), None
        except Exception as error:
            result = None, error
        results = self.ranks.all_gather(result)
        for _, error in results:
            if error is not None:
                raise error
        return [value for value, _ in results]

    def _check_folder(self, checkpoint: Path) -> None:
        """Refuse a folder of a run that not all hosts see, before training."""

        def make() -> Path:
            folder = shards_folder(checkpoint).absolute()
            with files.storage_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            return folder

        folder = self.ranks.broadcast(make)
        seen = self._by_all(lambda: (folder.is_dir(), socket.gethostname()))
        hosts = sorted({host for there, host in seen if not there})
        if hosts:
            raise SettingsError(
                f"{folder}: not seen on {', '.join(hosts)}; each rank writes the rows it has "
                "there: give model_root (--output) a folder that all hosts share"
            )

    def _take_over(
        self,
        layer: FeatureEmbeddingDict,
        prefix: str,
        tables: list[EmbeddingCollection],
        unmade: dict[str, UnmadeTable],
    ) -> list[_Collection]:
        """Put a :class:`ShardedTable` in the place of each table of a layer, and note weights."""
        collections: dict[int, _Collection] = {}
        configs: dict[int, dict[nn.Parameter, EmbeddingConfig]] = {}
        for field, table in list(layer.embedding_layers.items()):
            if not is_plain(table):
                continue
            width = table.embedding_dim
            collection = collections.setdefault(width, _Collection(width, {}, {}))
            config = configs.setdefault(width, {}).setdefault(
                table.weight,
                EmbeddingConfig(
                    name=field,
                    embedding_dim=-(-width // _WIDTH_UNIT) * _WIDTH_UNIT,
                    num_embeddings=table.num_embeddings,
                    feature_names=[],
                ),
            )
            config.feature_names.append(field)
            name = f"{prefix}.embedding_layers.{field}.weight"
            collection.members.setdefault(config.name, []).append(name)
            unmade[name] = table.weight
            collection.fields[field] = layer.embedding_layers[field] = ShardedTable(table)
        for width, collection in collections.items():
            # TorchRec wants the fields of one table side by side.
            collection.fields = {
                field: collection.fields[field]
                for config in configs[width].values()
                for field in config.feature_names
            }
            tables.append(EmbeddingCollection(list(configs[width].values()), torch.device("meta")))
        self._collections += collections.values()
        return list(collections.values())

    def _check_used_once(self, model: BaseModel, unmade: Mapping[str, UnmadeTable]) -> None:
        """Refuse a model that has the weights of a table in a second place."""
        taken = {id(weights) for weights in unmade.values()}
        tables = sum(len(collection.members) for collection in self._collections)
        if len(taken) < tables or any(id(weights) in taken for weights in model.parameters()):
            raise SettingsError(
                f"{type(model).__name__} uses a table of an embedding layer in another place too: "
                "leave table_sharding out"
            )

    def _check_room(
        self, model: BaseModel, unmade: Mapping[str, UnmadeTable], options: ShardingOptions
    ) -> None:
        """Refuse, before any row is made, what a host or GPU cannot hold of its ranks."""
        tables = {id(table): table for table in unmade.values()}.values()
        work = Workload(
            batch_size=0,
            table_rows=sum(map(len, tables)),
            table_parameters=sum(table.numel() for table in tables),
            lookups=0,
            looked_up=0,
            other_parameters=sum(w.numel() for w in model.parameters() if w.requires_grad),
            moments=2 if "betas" in model.optimizer.defaults else 0,
        )
        cost = divided_tables(work, self.ranks.size, options.optimizer)
        per_host = _ranks_of_this_host(self.ranks)
        if model.device.type == "cuda":
            room, place = torch.cuda.mem_get_info(model.device)[1], f"GPU {model.device.index}"
        else:
            room, place = machine_memory() / per_host - PROCESS, f"for each of its {per_host} ranks"

        def check() -> None:
            if cost.memory > room:
                raise SettingsError(
                    f"table_sharding: a rank's rows and the other weights, with gradients and "
                    f"optimizer, take {cost.memory / 1e9:,.1f} GB at the least, "
                    f"{socket.gethostname()} has {max(room, 0) / 1e9:,.1f} GB ({place}): divide "
                    "the tables among more hosts, or take a smaller embedding_dim"
                )

        self._by_all(check)

    def _divide(
        self, tables: Sequence[EmbeddingCollection], options: ShardingOptions, device: torch.device
    ) -> None:
        set_gradient_division(False)  # a rank's gradient counts by its portion of the batch
        modules = nn.ModuleDict({str(at): each for at, each in enumerate(tables)})
        sharder = EmbeddingCollectionSharder(
            {"optimizer": _OPTIMIZERS[options.optimizer], "learning_rate": options.learning_rate}
        )
        kinds = ["row_wise", "table_wise"] if options.sharding == "auto" else [options.sharding]
        constraint = ParameterConstraints(sharding_types=kinds, compute_kernels=["fused"])
        names = {name for collection in self._collections for name in collection.members}
        planner = EmbeddingShardingPlanner(
            _topology(device, self.ranks),
            storage_reservation=FixedPercentageStorageReservation(_RESERVED),
            constraints=dict.fromkeys(names, constraint),
        )
        group = self.ranks.control or dist.group.WORLD
        try:
            plan = planner.collective_plan(modules, [sharder], group)
        except PlannerError as error:
            raise SettingsError(f"table_sharding: TorchRec finds no plan: {error}") from error
        environment = ShardingEnv.from_process_group(dist.group.WORLD)
        for at, collection in enumerate(self._collections):
            own = plan.get_plan_for_module(str(at))
            for name, table in own.items():
                first = collection.members[name][0]
                LOG.info(f"Table {first}: {table.sharding_type}, ranks {table.ranks}")
            with _quiet():
                collection.sharded = sharder.shard(modules[str(at)], own, environment, device)
        self._by_all(self._check_rows)

    def _check_rows(self) -> None:
        """Refuse a rank that has parts of tables, but no row in them: fbgemm fails without."""
        for collection in self._collections:
            parts = list(collection.weights())
            if parts and not any(len(part.rows) for part in parts):
                raise SettingsError(
                    f"table_sharding: rank {self.ranks.rank} of {self.ranks.size} would get no row "
                    f"of {min(collection.members)}, as the tables are too small: leave "
                    "table_sharding out, or take fewer workers"
                )

    def _weights(self) -> Iterator[Piece]:
        for collection in self._collections:
            yield from collection.weights()

    def _optimizer_state(self) -> Iterator[Piece]:
        for collection in self._collections:
            yield from collection.optimizer_state()

    def _names(self) -> Iterator[list[str]]:
        """Names of the same weights, table by table."""
        for collection in self._collections:
            yield from collection.members.values()


def _look_up(
    collections: Sequence[_Collection],
    optimizer: torch.optim.Optimizer,
    scale: float,
    layer: FeatureEmbeddingDict,
    arguments: tuple[Any, ...],
    options: Mapping[str, Any],
) -> None:
    inputs = arguments[0] if arguments else options["inputs"]
    for collection in collections:
        collection.look_up(inputs, scale * optimizer.param_groups[0]["lr"])


def _forget(optimizer: torch.optim.Optimizer, taken: Mapping[str, Tensor]) -> None:
    """Take weights out of an optimizer that it is not to update."""
    ids = set(map(id, taken.values()))
    for group in optimizer.param_groups:
        group["params"] = [weight for weight in group["params"] if id(weight) not in ids]
    for weight in taken.values():
        optimizer.state.pop(weight, None)


def _ranks_of_this_host(ranks: JoinedRanks) -> int:
    """Count them; all ranks call this."""
    return ranks.all_gather(socket.gethostname()).count(socket.gethostname())


def _topology(device: torch.device, ranks: JoinedRanks) -> Topology:
    per_host = _ranks_of_this_host(ranks)
    memory = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None
    return Topology(
        world_size=ranks.size,
        compute_device=device.type,
        local_world_size=per_host if ranks.size % per_host == 0 else 1,
        hbm_cap=memory,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pages of fbgemm's arguments out of the log."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def _table(key: str) -> str:
    """Name of the table in "embeddings.NAME.weight"."""
    return key.split(".")[1]
