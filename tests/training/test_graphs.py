"""Graphed steps, all but the recording itself: a stand-in records and replays on the CPU."""

import copy
from contextlib import nullcontext

import pytest
import torch
from helpers import make_feature_map, random_batch

import model_zoo
from fuxictr_tf4ctr.training.fast import EXACT, FastOptions
from fuxictr_tf4ctr.training.fast.cuda_graphs import GraphedStep
from fuxictr_tf4ctr.training.step import training_step


class StandIn:
    """Does a step to see what it leaves, undoes it, and does it again into the same tensors."""

    def __init__(self, model):
        self.model, self.recorded, self.replayed = model, 0, 0

    def aside(self):
        return nullcontext()

    def record(self, make):
        model = self.model
        weights = copy.deepcopy(model.state_dict())
        state = copy.deepcopy(model.optimizer.state_dict()["state"])
        generator = torch.get_rng_state()
        loss, terms = make()
        model.load_state_dict(weights)
        for number, weight in enumerate(model.parameters()):
            for name, value in state[number].items():
                model.optimizer.state[weight][name].copy_(value)
        torch.set_rng_state(generator)
        self.recorded += 1

        def replay():
            self.replayed += 1
            new_loss, new_terms = make()
            loss.copy_(new_loss)
            terms.values.copy_(new_terms.values)

        return (loss, terms), replay


def twin():
    torch.manual_seed(1)
    model = model_zoo.TF4CTR_DeepFM(
        make_feature_map(), embedding_dim=4, complex_hidden_units=[5], net_dropout=0.1,
        embedding_regularizer=0.1,
    )  # fmt: skip
    model._max_gradient_norm = 10.0
    model.train()
    return model


def as_matrices(batch):
    """The same batch, its columns views of one matrix of each type."""
    whole = dict(batch)
    for dtype in {column.dtype for column in batch.values()}:
        names = [name for name, column in batch.items() if column.dtype == dtype]
        matrix = torch.stack([batch[name] for name in names])
        whole |= {name: matrix[at] for at, name in enumerate(names)}
    return whole


@pytest.mark.parametrize(
    ("form", "fast"), [(dict, EXACT), (as_matrices, EXACT), (as_matrices, FastOptions("bf16"))]
)
def test_replayed_steps_are_the_plain_ones_through_smaller_batches_and_another_rate(form, fast):
    plain, graphed = twin(), twin()
    sizes = [12, 12, 12, 12, 5, 12, 12, 5, 12, 5]
    batches = [
        form(random_batch(plain.feature_map, rows=rows, seed=seed))
        for seed, rows in enumerate(sizes)
    ]
    with training_step(plain, fast) as step, training_step(graphed, fast) as own:
        graphs = StandIn(graphed)
        replayed = GraphedStep(graphed, own, graphs)
        for number, batch in enumerate(batches):
            if number == 6:
                plain.lr_decay()
                graphed.lr_decay()
            losses = []
            for train in (step, replayed):
                torch.manual_seed(number)
                losses.append(train(batch).item())
            assert losses[0] == pytest.approx(losses[1], rel=1e-6)
            torch.testing.assert_close(step.terms.values, replayed.terms.values)
    assert graphs.recorded == 2  # once for each size, and not for the other rate
    assert graphs.replayed == 6
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(graphed.state_dict()[name], weight, rtol=1e-6, atol=1e-8)


def test_a_state_of_a_cpu_that_is_taken_up_can_be_recorded_too():
    model, before = twin(), twin()
    with training_step(before) as step:
        step(random_batch(before.feature_map))
    with training_step(model) as own:
        replayed = GraphedStep(model, own, StandIn(model))
        model.optimizer.load_state_dict(before.optimizer.state_dict())
        replayed(random_batch(model.feature_map))
    assert all(group["capturable"] for group in model.optimizer.param_groups)
