"""What one of several ranks does in the tests, as a process of its own: ``job.py FOLDER``."""

import sys
from pathlib import Path

import numpy as np
import torch
from fuxictr.features import FeatureMap

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "training")]

from tiny_model import EmbeddingMLP, build_feature_map  # noqa: E402

import model_zoo  # noqa: E402
from fuxictr_tf4ctr.datasets import H5DataLoader  # noqa: E402
from fuxictr_tf4ctr.datasets.stored import H5Writer  # noqa: E402
from fuxictr_tf4ctr.distributed import (  # noqa: E402
    Ranks,
    check_agreement,
    joined_ranks,
    synchronise_batch_norm,
)
from fuxictr_tf4ctr.distributed.cost import WHOLE  # noqa: E402
from fuxictr_tf4ctr.errors import DataError, DivergenceError, SettingsError  # noqa: E402
from fuxictr_tf4ctr.metrics.definitions import Columns  # noqa: E402
from fuxictr_tf4ctr.metrics.evaluate import evaluate_spread  # noqa: E402
from fuxictr_tf4ctr.training import (  # noqa: E402
    Checkpoints,
    Data,
    FastOptions,
    Schedule,
    Team,
    Watch,
    evaluate,
    fit,
)
from fuxictr_tf4ctr.training.step import training_step  # noqa: E402

# Not a multiple of any number of ranks, nor of the batch size.
ROWS, BATCH_SIZE = 139, 24


def write_data(folder: Path, apart: int = 1) -> None:
    """Write training and validation rows of the tiny model's columns, users so far apart."""
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        user, item = rng.integers(1, 12, (2, ROWS))
        label = (rng.random(ROWS) < 1 / (1 + np.exp((item - user) / 3))).astype(np.float32)
        query = np.arange(ROWS) // 8
        columns = {"user": user * apart, "item": item, "query": query, "label": label}
        with H5Writer(folder / f"{split}.h5") as writer:
            writer.append(columns)


class TinyMLP(EmbeddingMLP):
    """FuxiCTR's layers, dropout off: ranks draw other masks than one process would."""

    def __init__(self, feature_map: FeatureMap, **kwargs):
        super().__init__(feature_map, **kwargs)
        for module in self.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        # A bias before a batch norm has no gradient but rounding, of which Adam would make steps.
        self.compile("SGD", "binary_crossentropy", 0.5)


class OwnStep(TinyMLP):
    def train_step(self, batch):
        return super().train_step(batch)


def build(model_class: type, folder: Path, feature_map: FeatureMap | None = None, **options):
    (folder / "tiny").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    settings = {
        "metrics": ["AUC", "logloss", "gAUC"], "monitor": "AUC", "early_stop_patience": 9,
        "embedding_regularizer": 0.01, "net_regularizer": 0.01, "model_id": "model", "verbose": 0,
    }  # fmt: skip
    feature_map = feature_map or build_feature_map("query")
    return model_class(feature_map, model_root=str(folder), **settings | options)


def twin(folder: Path, **options):
    options = {"optimizer": "SGD", "learning_rate": 0.5, "batch_norm": True} | options
    return build(
        model_zoo.TF4CTR_DCN, folder, embedding_dim=4, complex_hidden_units=[5],
        sample_selection="GM", **options,
    )  # fmt: skip


def train(make, folder: Path, ranks: Ranks, epochs: int = 2, state: Path | None = None):
    """Train and return the evaluations without their durations; what goes on is streamed."""
    storage = "memory" if state is None and epochs == 2 else "stream"
    return train_model(make(folder), WHOLE, folder, ranks, epochs, state, storage=storage)


def train_model(
    model, tables, folder: Path, ranks: Ranks, epochs: int, state, norm=10.0, storage="memory"
):
    if ranks.size > 1:
        synchronise_batch_norm(model)
    train_gen, valid_gen = (
        H5DataLoader(
            model.feature_map, folder / f"{split}.h5", split=split, seed=3, shuffle=True,
            batch_size=BATCH_SIZE // ranks.size, rank=ranks.rank, world_size=ranks.size,
            filled=ranks.once_a_host, storage=storage,
        )
        for split in ("train", "valid")
    )  # fmt: skip
    keeps = state is not None and ranks.leads
    result = fit(
        model,
        Data(train_gen, valid_gen),
        Schedule(epochs=epochs, max_gradient_norm=norm),
        Team(ranks, tables),
        Watch(checkpoints=Checkpoints(state, steps=4) if keeps else None),
    )
    return [{k: v for k, v in record.items() if k != "seconds"} for record in result.epochs]


def fuxictr_model(folder: Path):
    return build(TinyMLP, folder)


def error_of(call) -> str:
    try:
        call()
    except (SettingsError, DataError, DivergenceError) as error:
        return str(error)
    return ""


def undefined():
    raise DataError("AUC is not defined")


def steps_refused(folder: Path, ranks: Ranks) -> list[str]:
    def enter(model, fast=FastOptions()):  # noqa: B008
        with training_step(model, fast, ranks):
            pass

    return [
        error_of(lambda: enter(build(OwnStep, folder))),
        error_of(lambda: enter(fuxictr_model(folder), FastOptions(sparse_embeddings=True))),
    ]


def exchanged(ranks: Ranks) -> list[int]:
    """Send the number n of a row to rank n mod size, but none to rank 1."""
    numbers = torch.arange(9) + 100 * ranks.rank
    (received,) = ranks.all_to_all([numbers], numbers % ranks.size * (numbers % ranks.size != 1))
    return received.sort().values.tolist()


def sent_early(ranks: Ranks) -> dict:
    """Add gradients up, and note how many bytes had gone out before all of them were known."""
    torch.manual_seed(0)
    first, second, idle = (torch.nn.Linear(600, 600) for _ in range(3))
    sums = ranks.sums([*first.parameters(), *idle.parameters(), *second.parameters()])
    before, early = ranks.bytes_sent, []
    hidden = first(torch.randn(8, 600)[ranks.rank :: ranks.size])
    hidden.register_hook(lambda _: early.append(ranks.bytes_sent - before))
    second(hidden.relu()).square().sum().backward()
    sums.finish([torch.zeros(1)])
    sums.release()
    return {
        "early": early[0],
        "gradients": [weight.grad for weight in (*first.parameters(), *second.parameters())],
        "idle": idle.weight.grad,
    }


def raised(ranks: Ranks) -> list[list[bool]]:
    """Raise flags on rank 1 before one sum, and none before the next."""
    sums, found = ranks.sums([]), []
    for mine in (ranks.rank == 1, False):
        ranks.raise_flags(False, mine)
        sums.finish([torch.zeros(1)])
        found.append(ranks.raised(True, True))
    return found


CASES = (
    "plain", "ties", "one score", "one class", "few", "not finite", "no label",
    "groups of one class",
)  # fmt: skip


def evaluate_diverged(folder: Path, ranks: Ranks) -> None:
    """Evaluate a model on rows of which row 5 gets no finite score."""
    model = fuxictr_model(folder)
    rows = torch.arange(11).tensor_split(ranks.size)[ranks.rank]
    batch = {"user": rows % 12, "item": rows % 12, "label": rows % 2, "query": rows}
    with torch.no_grad():
        for table in model.embedding_layer.embedding_layer.embedding_layers.values():
            table.weight[5] = torch.nan
    evaluate(model, [batch], ranks=ranks)


METRICS = ["AUC", "logloss", "ece", "pcoc", "gAUC", "avgAUC", "MRR", "NDCG(k=3)"]


def scored_rows(case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and groups of rows: with ties, with one score alone, or with a fault."""
    rng = np.random.default_rng(5)
    rows = 3 if case == "few" else 997
    y_true = rng.integers(0, 2, rows).astype(np.float32)
    y_pred = rng.beta(1, 9, rows).astype(np.float32)
    group_id = rng.integers(0, 40, rows)
    if case == "ties":
        y_pred = y_pred.round(2)
    elif case == "one score":
        y_pred[:] = 0.25
    elif case == "one class":
        y_true[:] = 1
    elif case == "few":
        y_true[:], group_id[:] = [0, 1, 0], 7
    elif case == "not finite":
        y_pred[500] = np.nan
    elif case == "no label":
        y_true[996] = 2
    elif case == "groups of one class":
        y_true = (group_id % 2).astype(np.float32)
    return y_true, y_pred, group_id


def metrics_among(ranks: Ranks, case: str) -> dict[str, float] | str:
    own = [torch.from_numpy(column[ranks.rank :: ranks.size]) for column in scored_rows(case)]
    try:
        return evaluate_spread(Columns(*own), METRICS, ranks)
    except DataError as error:
        return str(error)


def row_weights() -> torch.Tensor:
    """Weights of the rows of the case "plain", some of them 0."""
    return torch.from_numpy(np.random.default_rng(6).integers(0, 4, 997) / 2)


def weighted_among(ranks: Ranks) -> list[dict[str, float] | None]:
    """Weighted metrics of rows, and of groups, which have none."""
    own = [torch.from_numpy(column[ranks.rank :: ranks.size]) for column in scored_rows("plain")]
    columns = Columns(*own, row_weights()[ranks.rank :: ranks.size])
    return [evaluate_spread(columns, names, ranks) for names in (METRICS[:4], ["gAUC"])]


def once_a_host(ranks: Ranks, fill) -> list[list[int]]:
    """Fill a tensor; a later writer shows whether others see the same memory."""
    tensor = ranks.once_a_host((2, 3), torch.int32, fill)
    if ranks.rank == 1:
        tensor[1] = 5
    ranks.all_gather(None)
    return tensor.tolist()


def main(folder: Path) -> None:
    with joined_ranks(on_gpu=False, seconds=60) as ranks:
        mine = [torch.tensor([1.0 + ranks.rank]), torch.full((1 << 19,), 2.0)]
        ranks.sums([]).finish(mine)
        result = {
            "portion": ranks.portion(ranks.rank + 1),
            "sums": [mine[0].item(), mine[1].unique().tolist()],
            "bytes": ranks.bytes_sent,
            "agreed": ranks.agree(ranks.rank == 1, False),
            "raised": raised(ranks),
            "sent early": sent_early(ranks),
            "shared": ranks.broadcast(lambda: f"of {ranks.rank}"),
            "shared error": error_of(lambda: ranks.broadcast(undefined)),
            "host": once_a_host(ranks, lambda tensor: tensor.fill_(ranks.rank)),
            "host error": error_of(lambda: once_a_host(ranks, lambda tensor: undefined())),
            "rows": ranks.gather([torch.arange(11).tensor_split(ranks.size)[ranks.rank]])[
                0
            ].tolist(),
            "metrics": {case: metrics_among(ranks, case) for case in CASES},
            "weighted": weighted_among(ranks),
            "exchanged": exchanged(ranks),
            "diverged": error_of(lambda: evaluate_diverged(folder, ranks)),
            "agree": error_of(lambda: check_agreement(ranks, {"lr": 1, "data": "a"})),
            "differ": error_of(lambda: check_agreement(ranks, {"lr": ranks.rank, "data": "a"})),
            "refused": steps_refused(folder, ranks),
            "twin": train(twin, folder, ranks),
            "fuxictr": train(fuxictr_model, folder, ranks),
        }
        # What one process began, these ranks go on with.
        result["resumed"] = train(twin, folder, ranks, 4, folder / "state")
    torch.save(result, folder / f"rank{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
