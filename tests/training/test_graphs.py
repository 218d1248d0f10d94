"""Graphed steps, all but the recording itself: a stand-in records and replays on the CPU."""

import copy
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from helpers import make_feature_map, random_batch

import model_zoo
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.training.fast import EXACT, FastOptions
from fuxictr_tf4ctr.training.fast.cuda_graphs import CudaGraphs, GraphedStep
from fuxictr_tf4ctr.training.losses import NO_TERMS, monitored_values
from fuxictr_tf4ctr.training.step import training_step

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from kernels import move, on_meta


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
        loss, terms, shown = make()
        model.load_state_dict(weights)
        for number, weight in enumerate(model.parameters()):
            for name, value in state[number].items():
                model.optimizer.state[weight][name].copy_(value)
        torch.set_rng_state(generator)
        self.recorded += 1

        def replay():
            self.replayed += 1
            new_loss, new_terms, new_shown = make()
            loss.copy_(new_loss)
            terms.values.copy_(new_terms.values)
            with torch.no_grad():
                for name, value in shown.items():
                    value.copy_(new_shown[name])

        return (loss, terms, shown), replay


class Stream:
    """Stands in for a stream; notes what is done on it."""

    notes: ClassVar[list[tuple]] = []

    def wait_stream(self, other):
        self.notes.append(("wait", self, other))


class Recording:
    """Stands in for ``torch.cuda.CUDAGraph``."""

    def capture_begin(self, pool, *, capture_error_mode, **_):
        Stream.notes.append(("begin", torch.cuda.current_stream(), pool, capture_error_mode))

    def capture_end(self):
        raise RuntimeError("CUDA error: a previous error during capture")

    def replay(self):
        """Not reached."""


def test_recordings_go_the_way_pytorch_demands_and_leave_the_stream_as_it_was(monkeypatch):
    """``torch.cuda.graph`` is PyTorch's own, on stand-ins for what it drives."""
    Stream.notes.clear()
    here = Stream()
    current = [here]

    @contextmanager
    def on(stream):
        before, current[0] = current[0], stream
        try:
            yield
        finally:
            current[0] = before

    stand_ins = {"Stream": Stream, "CUDAGraph": Recording, "graph_pool_handle": lambda: (0, 1)}
    stand_ins |= {"stream": lambda stream: on(stream), "current_stream": lambda: current[0]}
    for name, value in (stand_ins | dict.fromkeys(["synchronize", "empty_cache"], int)).items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_host_emptyCache", int, raising=False)
    graphs = CudaGraphs()
    with graphs.aside():
        aside = torch.cuda.current_stream()
    with pytest.raises(RuntimeError) as raised:
        graphs.record(lambda: 1 / 0)
    assert isinstance(raised.value.__context__, ZeroDivisionError)  # which is the one to name
    waits = [("wait", aside, here), ("wait", here, aside)]
    assert Stream.notes == [*waits, ("begin", aside, (0, 1), "thread_local")]
    assert aside is not here and current == [here]


def twin(**options):
    torch.manual_seed(1)
    model = model_zoo.TF4CTR_DeepFM(
        make_feature_map(), embedding_dim=4, complex_hidden_units=[5], net_dropout=0.1,
        embedding_regularizer=0.1, **options,
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


def test_what_a_model_shows_is_of_the_last_batch_though_it_has_seen_others_since():
    model = twin(sample_selection="GM")
    batches = [random_batch(model.feature_map, rows=12, seed=seed) for seed in range(5)]
    with training_step(model) as own:
        step = GraphedStep(model, own, StandIn(model))
        for batch in batches:
            step(batch)
        seen = monitored_values(model)  # a stand-in lets the model see it; a GPU does not
        model.eval()(random_batch(model.feature_map, seed=9))
    assert monitored_values(step) == pytest.approx(seen)
    assert monitored_values(model) != pytest.approx(seen)


def test_a_step_that_cannot_be_recorded_is_one_message():
    class Refusing(StandIn):
        def record(self, make):
            try:
                raise RuntimeError("CUDA error: operation not permitted when capturing\nmore")
            except RuntimeError as error:
                raise RuntimeError("CUDA error: a previous error during capture") from error

    model = twin()
    with training_step(model) as own:
        step = GraphedStep(model, own, Refusing(model))
        for _ in range(3):
            step(random_batch(model.feature_map))
        with pytest.raises(SettingsError, match=r"^cuda_graphs: .*not permitted.*graphs: false$"):
            step(random_batch(model.feature_map))


def test_a_state_of_a_cpu_that_is_taken_up_can_be_recorded_too():
    """Of an optimizer that counts its steps on the CPU, unless it is told otherwise."""
    before, model = twin(), twin()
    before.optimizer.param_groups[0]["fused"] = False
    with training_step(before) as step:
        step(random_batch(before.feature_map))
    move(model)
    model.optimizer.load_state_dict(before.optimizer.state_dict())
    step = GraphedStep(model, lambda batch: torch.zeros((), device="meta"), StandIn(model))
    step.step.terms = NO_TERMS
    step(on_meta(random_batch(model.feature_map)))
    assert all(group["capturable"] for group in model.optimizer.param_groups)
    assert all(state["step"].device.type == "meta" for state in model.optimizer.state.values())
