"""What a rank with divided tables does in the tests: ``sharded_job.py FOLDER JOB``."""

import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path
from unittest import mock

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding
from fuxictr.pytorch.models import BaseModel
from job import TinyMLP, build, build_feature_map, error_of, train_model, twin
from torchrec.distributed.batched_embedding_kernel import EmbeddingFusedOptimizer

from fuxictr_tf4ctr.distributed import Ranks, joined_ranks
from fuxictr_tf4ctr.distributed.cost import ShardingOptions
from fuxictr_tf4ctr.engines.torchrec import sharded_tables
from fuxictr_tf4ctr.engines.torchrec.sharded_tables import ShardedTables
from fuxictr_tf4ctr.training.checkpoints import merge_weights, save_weights
from fuxictr_tf4ctr.training.shards import shards_folder, write_shard

# The gradient of divided tables is in no norm.
UNCLIPPED = 1e9
WITHOUT = {"embedding_regularizer": 0, "net_regularizer": 0}
# For divided tables, their optimizer is named as PyTorch's is for whole ones.
CASES = {
    ("twin", "row_wise", "adagrad"): {
        "optimizer": "Adagrad",
        "learning_rate": 0.05,
        "batch_norm": False,
    },
    ("twin", "table_wise", "sgd"): {"optimizer": "SGD", "learning_rate": 0.5},
    ("fuxictr", "auto", "sgd"): {"optimizer": "SGD", "learning_rate": 0.5},
}


def make(name: str, folder: Path, **options):
    if name == "twin":
        return twin(folder, **options, **WITHOUT)
    return build(TinyMLP, folder, **WITHOUT)


def unmade(make, *arguments, **options) -> BaseModel:
    with ShardedTables.unmade():
        return make(*arguments, **options)


def divided(model: BaseModel, ranks: Ranks, sharding: str, optimizer: str) -> ShardedTables:
    rate = model.optimizer.param_groups[0]["lr"]
    return ShardedTables(model, ranks, ShardingOptions(sharding, optimizer, rate))


def train_divided(case, folder: Path, ranks: Ranks, epochs: int, state: Path | None = None):
    name, sharding, optimizer = case
    model = unmade(make, name, folder, **CASES[case])
    tables = divided(model, ranks, sharding, optimizer)
    evaluations = train_model(model, tables, folder, ranks, epochs, state, UNCLIPPED)
    return evaluations, merged(model, tables, ranks)


def merged(model: BaseModel, tables: ShardedTables, ranks: Ranks) -> dict[str, torch.Tensor]:
    """The weights of a model in the file that its ranks wrote, on rank 0."""
    path = Path(model.checkpoint).with_name("merged.model")
    divided = tables.save(path, 1, optimizer=False)
    if not ranks.leads:
        return {}
    save_weights(model, path, divided)
    assert merge_weights(path) and not shards_folder(path).exists()
    return torch.load(path)


class Lookups(BaseModel):
    """Fields that share a table, one a sequence, and one that is looked up twice."""

    def __init__(self, feature_map, width=4, **kwargs):
        super().__init__(feature_map, **kwargs)
        torch.manual_seed(11)
        self.embedding_layer = FeatureEmbedding(feature_map, width, use_sharing=True)
        self.compile("SGD", "binary_crossentropy", 0.5)
        for table in self.embedding_layer.embedding_layer.embedding_layers.values():
            torch.nn.init.normal_(table.weight)

    def forward(self, inputs):
        layer = self.embedding_layer.embedding_layer
        fields = layer(inputs=inputs)
        again = layer.embedding_layers["item"](inputs["item"])
        parts = [fields["user"], fields["item"], again, fields["clicked"].sum(dim=1)]
        return torch.stack(parts, dim=1)


def lookup_map(vocab_size: int = 7) -> FeatureMap:
    feature_map = FeatureMap("lookups", "unused")
    categorical = {"type": "categorical", "source": "", "padding_idx": 0}
    shared = {"type": "sequence", "max_len": 3, "share_embedding": "item", "feature_encoder": None}
    feature_map.features["user"] = categorical | {"vocab_size": min(3, vocab_size)}
    feature_map.features["item"] = categorical | {"vocab_size": vocab_size}
    feature_map.features["clicked"] = categorical | {"vocab_size": vocab_size} | shared
    feature_map.labels = ["label"]
    return feature_map


def lookup_batch() -> dict[str, torch.Tensor]:
    return {
        "user": torch.tensor([1, 2, 0]),
        "item": torch.tensor([3, 6, 6]),
        "clicked": torch.tensor([[6, 3, 0], [0, 0, 0], [5, 6, 1]]),
    }


def step(model: BaseModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Make a step towards larger sums, each number of its own weight."""
    outputs = model(batch)
    (outputs * outputs.detach()).sum().backward()
    return outputs.detach()


def look_up(folder: Path, ranks: Ranks, optimizer: str, width: int) -> dict:
    """Embed and learn from rows of different numbers on two ranks, and gather the tables."""
    model = unmade(build, Lookups, folder, lookup_map(), width=width, **WITHOUT)
    tables = divided(model, ranks, "row_wise", optimizer)
    rows = slice(0, 2) if ranks.leads else slice(2, 3)
    batch = {name: column[rows] for name, column in lookup_batch().items()}
    outputs = step(model, batch)
    outside = {name: column + 100 for name, column in batch.items()}
    elsewhere = model.embedding_layer.embedding_layer.embedding_layers["item"]
    return {
        "outputs": outputs,
        "weights": merged(model, tables, ranks),
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "outside": isinstance(error_in(lambda: model(outside)), IndexError),
        "beside": error_of(lambda: elsewhere(batch["item"] * 0)),
    }


def error_in(call) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def tied(feature_map: FeatureMap, **kwargs) -> BaseModel:
    """A model with one table in two places."""
    model = TinyMLP(feature_map, **kwargs)
    model.again = model.embedding_layer.embedding_layer.embedding_layers["user"]
    return model


class OwnFiles(TinyMLP):
    def save_weights(self, checkpoint):
        super().save_weights(checkpoint)


def refusal(model_class, folder: Path, ranks: Ranks, context=None, feature_map=None) -> str:
    model = unmade(build, model_class, folder, feature_map, **WITHOUT)
    with context or nullcontext():
        return error_of(lambda: divided(model, ranks, "auto", "sgd"))


FIRST = next(iter(CASES))


def work_of_two(folder: Path, ranks: Ranks) -> dict:
    result = {case: train_divided(case, folder, ranks, 2) for case in CASES}
    result["whole run"] = train_divided(FIRST, folder, ranks, 4)
    train_divided(FIRST, folder, ranks, 2, folder / "state")
    if ranks.leads:
        three = shutil.copytree(folder, folder.with_name("three"))
        lost = shutil.copytree(folder / "state", three / "lost")
        next(lost.glob("step-*12.shards/*/rank-00001.*")).unlink()
    result["resumed"] = train_divided(FIRST, folder, ranks, 4, folder / "state")
    result["tied"] = refusal(tied, folder, ranks)
    result["own files"] = refusal(OwnFiles, folder, ranks)
    unseen = mock.patch.object(Path, "is_dir", lambda path: ranks.leads)
    result["not seen"] = refusal(TinyMLP, folder, ranks, unseen)
    little = mock.patch.object(sharded_tables, "machine_memory", lambda: 1e8 + 1e12 * ranks.leads)
    result["no room"] = refusal(TinyMLP, folder, ranks, little)
    result["no row"] = refusal(Lookups, folder, ranks, feature_map=lookup_map(1))
    for optimizer, width in (("sgd", 6), ("row_wise_adagrad", 4)):
        result[optimizer] = look_up(folder, ranks, optimizer, width)
    return result


def work_of_three(folder: Path, ranks: Ranks) -> dict:
    """Go on with what two ranks began."""
    lost = error_of(lambda: train_divided(FIRST, folder, ranks, 4, folder / "lost"))
    with mock.patch.object(EmbeddingFusedOptimizer, "set_optimizer_step") as known:
        moved = train_divided(FIRST, folder, ranks, 4, folder / "state")
    steps = {call.args for call in known.call_args_list}
    big = big_of_three(folder.with_name("big"), ranks)
    return {"lost": lost, "moved": moved, "steps": steps, "big": big}


BIG = 10_000_000
BIG_BYTES = 4 * BIG * 4


def big_map() -> FeatureMap:
    """The tiny model's features, one with a table of 160 MB."""
    feature_map = build_feature_map("query")
    feature_map.features["user"]["vocab_size"] = BIG
    return feature_map


def train_big(folder: Path, ranks: Ranks) -> list[dict]:
    """Build, train, save and resume, if there is what to resume."""
    model = unmade(build, TinyMLP, folder, big_map(), **WITHOUT)
    tables = divided(model, ranks, "row_wise", "row_wise_adagrad")
    return train_model(model, tables, folder, ranks, 2, folder / "state")


@contextmanager
def killed_in_a_save(number: int) -> Iterator[None]:
    """While in context, end this process within a save."""
    saves = count(1)

    def write(folder, rank, pieces):
        if next(saves) == number:
            (folder / "rank-00001.safetensors").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        write_shard(folder, rank, pieces)

    with mock.patch.object(sharded_tables, "write_shard", write):
        yield


def big_of_two(folder: Path, ranks: Ranks) -> None:
    """Train until rank 1 is killed while it saves the state after step 8."""
    limit_memory()
    with nullcontext() if ranks.leads else killed_in_a_save(4), suppress(RuntimeError):
        train_big(folder, ranks)


def big_of_three(folder: Path, ranks: Ranks) -> dict:
    """Go on with what two ranks left."""
    found = sorted(path.name for path in (folder / "state").glob("step-*"))
    limit_memory()
    return {"found": found, "evaluations": train_big(folder, ranks)}


def limit_memory() -> None:
    """Refuse this process more beside what it has than nine tenths of the whole table."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (now,) = (int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))
    most = now + int(0.9 * BIG_BYTES)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def main(folder: Path, job: str) -> None:
    with joined_ranks(on_gpu=False, seconds=60) as ranks:
        result = globals()[job](folder, ranks)
        torch.save(result, folder / f"{job}{ranks.rank}.pt")
        if job == "work_of_two":
            big_of_two(folder.with_name("big"), ranks)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
