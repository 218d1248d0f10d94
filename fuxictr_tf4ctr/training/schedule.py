"""What a training run is told: its data, its schedule, who trains with it and who watches."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from fuxictr_tf4ctr.distributed.cost import WHOLE, Tables
from fuxictr_tf4ctr.distributed.ranks import ALONE, Ranks
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.training.averaging import Averaging
from fuxictr_tf4ctr.training.checkpoints import Checkpoints
from fuxictr_tf4ctr.training.fast import EXACT, FastOptions
from fuxictr_tf4ctr.training.losses import UNWEIGHTED, RowWeights

# Intermediate results of a step; those of 10,000 rows of Criteo's shape add up to half a GB.
_ACTIVATION_BYTES = 2 << 30


class Data(NamedTuple):
    """The splits of a data set, each a loader of batches with a length.

    Attributes:
        train: Batches of one epoch. Their order must follow from the global random number
            generators or from the loader's ``epoch``.
        valid: Validation batches. None: train all epochs and keep the weights of the last.
        test: Test batches, which training does not look at.
    """

    train: Iterable
    valid: Iterable | None = None
    test: Iterable | None = None


@dataclass(frozen=True)
class Schedule:
    """How long and how to train.

    Attributes:
        epochs: Passes over the training data at most.
        eval_steps: Steps between evaluations, or a fraction of an epoch (0 < x < 1, rounded to
            whole steps). None: the model's own setting, and without one every epoch.
        max_gradient_norm: Norm to which the model's ``train_step`` clips the gradient.
        averaging: Weights averaged over the steps, kept in place of the steps' own. None: none.
        fast: Switches that may change results; by default none.
        weights: How much each row counts in the loss.

    Raises:
        SettingsError: ``epochs`` is below 1.
    """

    epochs: int = 100
    eval_steps: int | float | None = None
    max_gradient_norm: float = 10.0
    averaging: Averaging | None = None
    fast: FastOptions = EXACT
    weights: RowWeights = UNWEIGHTED

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "Schedule":
        """Read the schedule from complete settings."""
        return cls(
            params["epochs"],
            params.get("eval_steps"),
            params["max_gradient_norm"],
            Averaging.from_params(params),
            FastOptions.from_params(params),
            RowWeights.from_params(params),
        )

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise SettingsError(f"epochs is {self.epochs}: train for at least 1")

    def evaluation_interval(self, own: int | float | None, steps_per_epoch: int) -> int:
        """Return the steps between evaluations.

        Args:
            own: The model's ``eval_steps``, for a schedule without.

        Raises:
            SettingsError: ``eval_steps`` is neither a number of steps nor a fraction.
        """
        eval_steps = own if self.eval_steps is None else self.eval_steps
        if eval_steps is None:
            return steps_per_epoch
        if 0 < eval_steps < 1:
            return max(1, round(eval_steps * steps_per_epoch))
        if isinstance(eval_steps, int) and eval_steps >= 1:
            return eval_steps
        raise SettingsError(
            f"eval_steps is {eval_steps}: give a whole number of steps, "
            "a fraction of an epoch between 0 and 1, or null for once an epoch"
        )


def training_bytes(model: nn.Module, schedule: Schedule) -> int:
    """Return about how many bytes training takes on the model's device beside its weights."""
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    # Gradients and the two moments of Adam; an average, and the weights whose place it takes.
    copies = 3 if schedule.averaging is None else 5
    return copies * weights + _ACTIVATION_BYTES


@dataclass(frozen=True)
class Team:
    """Who trains one model.

    Attributes:
        ranks: The processes, each with its share of every batch; the first saves weights.
        tables: The model's embedding tables, where they are divided among the ranks.
    """

    ranks: Ranks = ALONE
    tables: Tables = WHOLE


SOLO = Team()


@dataclass(frozen=True)
class Watch:
    """What is shown and kept of a run while it trains.

    Attributes:
        on_evaluation: Called with each record of ``FitResult.epochs`` as soon as it is known;
            after a resume, again with those that come after the state it went on from.
        progress: Show a progress bar on stderr. None: if stderr is a terminal.
        checkpoints: Where to keep the full state, and when; of the first rank alone. None: nowhere.
        keep_optimizer: Whether to keep the optimizers' state beside the best weights.
    """

    on_evaluation: Callable[[dict[str, Any]], None] = field(default=lambda record: None)
    progress: bool | None = None
    checkpoints: Checkpoints | None = None
    keep_optimizer: bool = False


UNWATCHED = Watch()
