"""What a run shows of its evaluations while it trains: rows of a table, TensorBoard files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def evaluation_row(evaluation: Mapping[str, Any]) -> str:
    """Format an evaluation as a row; rows of one run have their columns below each other.

    Args:
        evaluation: An entry of :attr:`FitResult.epochs`.
    """
    cells = [
        f"epoch {evaluation['epoch']:>3}",
        f"step {evaluation['step']:>7}",
        f"loss {evaluation['train_loss']:.6f}",
        *(f"{name} {value:.6f}" for name, value in evaluation["metrics"].items()),
    ]
    if evaluation["learning_rate"] is not None:
        cells.append(f"rate {evaluation['learning_rate']:.1e}")
    cells.append(f"{evaluation['seconds']:7.1f} s")
    return " | ".join(cells) + (" | best" if evaluation["best"] else "")


class EventFiles:
    """TensorBoard's event files of one run.

    Args:
        folder: Folder for the files.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, evaluation: Mapping[str, Any]) -> None:
        """Write the numbers of an evaluation."""
        for name, value in _scalars(evaluation):
            self._writer.add_scalar(name, value, evaluation["step"])
        self._writer.flush()


def _scalars(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield "train/loss", evaluation["train_loss"]
    if evaluation["learning_rate"] is not None:
        yield "train/learning_rate", evaluation["learning_rate"]
    entries = {"metrics": "metrics", "plain": "plain_metrics", "loss": "losses", "twin": "twin"}
    for group, entry in entries.items():
        for name, value in evaluation.get(entry, {}).items():
            yield f"{group}/{name}", value
