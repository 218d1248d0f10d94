"""The switches of fast mode: each against the rule it states, and what they refuse."""

import math
import shutil

import pytest
import torch
from helpers import make_feature_map, random_batch
from test_step import in_float64
from tiny_model import EmbeddingMLP, build_batches, build_model

import model_zoo
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.training import Checkpoints, Data, FastOptions, Schedule, Watch, fast, fit
from fuxictr_tf4ctr.training.fast import EXACT, fast_problems
from fuxictr_tf4ctr.training.fast.rows import cow_clip
from fuxictr_tf4ctr.training.step import training_step

SETTINGS = {"gpu": -1, "batch_size": 80, "optimizer": "adam"}


def twin(**kwargs):
    torch.manual_seed(1)
    options = {"embedding_dim": 4, "complex_hidden_units": [5], "embedding_regularizer": 0.1}
    model = model_zoo.TF4CTR_DeepFM(make_feature_map(), **options | kwargs)
    model._max_gradient_norm = 10.0
    model.train()
    return model


def batches_of(model, count=6, rows=12):
    return [random_batch(model.feature_map, rows=rows, seed=seed) for seed in range(count)]


def tables(model):
    return {n: w for n, w in model.named_parameters() if "embedding_layers" in n}


def with_gradients(model, batch):
    """Return a model's own gradients of a batch, without regularization."""
    model.zero_grad()
    model.add_loss(model(batch), model.get_labels(batch)).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def test_cowclip_is_the_papers_formula():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(6, 3, generator=generator) * 1e-2
    gradients = torch.randn(6, 3, generator=generator) * 10.0 ** torch.arange(-5, 1).unsqueeze(1)
    weights[4] = 0  # then the floor holds
    counts = torch.tensor([1, 2, 3, 1, 5, 7])
    clipped = cow_clip(weights, gradients, counts, ratio=0.5, floor=1e-4)
    for w, g, count, found in zip(weights, gradients, counts, clipped, strict=True):
        limit = count * max(0.5 * math.sqrt((w * w).sum()), 1e-4)
        norm = math.sqrt((g * g).sum())
        torch.testing.assert_close(found, g * min(1.0, limit / norm))
    assert not torch.equal(clipped[0], torch.zeros(3))
    assert torch.equal(cow_clip(weights, gradients * 0, counts), gradients * 0)


def test_cowclip_clips_each_row_before_its_regularization_and_scales_as_the_paper_says():
    scale = 4.0
    theirs, ours = (twin(optimizer="SGD", learning_rate=0.1) for _ in range(2))
    (batch,) = batches_of(theirs, 1)
    gradients = with_gradients(theirs, batch)
    for name, weight in tables(theirs).items():
        column = batch[name.split(".")[-2]]
        counts = torch.bincount(column, minlength=len(weight)).clamp(min=1)
        clipped = cow_clip(weight.detach(), gradients[name], counts)
        gradients[name] = clipped + 0.1 * scale * weight.detach()
    others = [n for n, _ in theirs.named_parameters() if n not in tables(theirs)]
    options = FastOptions(cowclip=True, cowclip_scale=scale)
    with training_step(ours, options) as step:
        step(batch)
    for name, weight in theirs.named_parameters():
        rate = 0.1 * math.sqrt(scale) if name in others else 0.1
        expected = weight.detach() - rate * gradients[name]
        torch.testing.assert_close(ours.get_parameter(name), expected, rtol=1e-5, atol=1e-7)
    with training_step(ours, options):  # of another fit of the same model
        ours.lr_decay()
    assert [group["lr"] for group in ours.optimizer.param_groups] == pytest.approx([0.01, 0.02])


def test_sparse_embeddings_are_lazy_adam_on_the_rows_of_the_batch():
    theirs, ours = (twin(learning_rate=0.01) for _ in range(2))
    moments = {n: (torch.zeros_like(w), torch.zeros_like(w)) for n, w in tables(theirs).items()}
    with training_step(ours, FastOptions(sparse_embeddings=True)) as step:
        for number, batch in enumerate(batches_of(theirs), 1):
            gradients = with_gradients(theirs, batch)
            before = {name: weight.detach().clone() for name, weight in tables(theirs).items()}
            theirs.optimizer.step()  # right for all but the tables
            for name, weight in tables(theirs).items():
                rows = batch[name.split(".")[-2]].unique()
                rows = rows[rows != 0]  # padding
                mean, square = moments[name]
                g = gradients[name][rows] + 0.1 * before[name][rows]
                mean[rows] = 0.9 * mean[rows] + 0.1 * g
                square[rows] = 0.999 * square[rows] + 0.001 * g * g
                spread = (square[rows] / (1 - 0.999**number)).sqrt() + 1e-8
                before[name][rows] -= 0.01 * mean[rows] / (1 - 0.9**number) / spread
                weight.data.copy_(before[name])
            step(batch)
            for name, weight in theirs.named_parameters():
                torch.testing.assert_close(ours.get_parameter(name), weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"sparse_embeddings": True}, {"cowclip": True}])
def test_a_resumed_run_ends_as_one_that_was_not_cut_off(tmp_path, options):
    ends = []
    for root, parts in (("whole", [3]), ("parts", [1, 3])):
        for epochs in parts:
            model = build_model(
                tmp_path / root, embedding_regularizer=0.01, optimizer="adam", early_stop_patience=9
            )
            torch.manual_seed(3)
            schedule = Schedule(epochs, fast=FastOptions(**options))
            watch = Watch(checkpoints=Checkpoints(tmp_path / root / "state", steps=4))
            data = Data(build_batches(1), build_batches(2))
            result = fit(model, data, schedule, watch=watch)
        ends.append((model.state_dict(), [r["metrics"] for r in result.epochs]))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(ends[0][0][name], ends[1][0][name]) for name in ends[0][0])


def test_sparse_embeddings_refuse_a_table_used_beside_the_lookups(tmp_path):
    class Beside(EmbeddingMLP):
        def forward(self, inputs):
            (table, *_) = self.embedding_layer.embedding_layer.embedding_layers.values()
            outputs = super().forward(inputs)
            return outputs | {"y_pred": outputs["y_pred"] + 0 * table.weight.sum()}

    model = build_model(tmp_path, Beside)
    with pytest.raises(SettingsError, match="beside FuxiCTR's embedding layers"):
        fit(
            model,
            Data(build_batches(1)),
            Schedule(epochs=1, fast=FastOptions(sparse_embeddings=True)),
        )


@pytest.mark.parametrize("fast_dropout", [False, True])
def test_bf16_is_close_and_leaves_no_trace(fast_dropout):
    exact, other = twin(net_dropout=0.2), twin(net_dropout=0.2)
    batches = batches_of(exact)
    torch.manual_seed(4)
    with training_step(exact, FastOptions(fast_dropout=fast_dropout)) as step:
        expected = [step(batch).item() for batch in batches]
    torch.manual_seed(4)
    with training_step(other, FastOptions(precision="bf16", fast_dropout=fast_dropout)) as step:
        losses = [step(batch).item() for batch in batches]
    assert losses == pytest.approx(expected, rel=2e-2)
    assert losses != expected
    assert not other.output_activation._forward_pre_hooks
    assert all(weight.dtype is torch.float32 for weight in other.parameters())


def test_bf16_takes_outputs_of_every_kind(tmp_path):
    class Parts(EmbeddingMLP):
        def forward(self, inputs):
            heads = [self.mlp.mlp[0](torch.ones(2, 8))]
            return super().forward(inputs) | {"block": None, "heads": heads}

        def add_loss(self, return_dict, y_true):
            assert return_dict["block"] is None
            assert return_dict["heads"][0].dtype is torch.float32
            return super().add_loss(return_dict, y_true)

    model = build_model(tmp_path, Parts)
    model._max_gradient_norm = 10.0
    with training_step(model, FastOptions(precision="bf16")) as step:
        assert math.isfinite(step(build_batches(1).batches[0]))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_steps_are_the_plain_ones_but_for_rounding():
    plain, other = twin(), twin()
    batches = [*batches_of(plain, 3), *batches_of(plain, 1, rows=5)]
    with training_step(plain) as step:
        expected = [step(batch).item() for batch in batches]
    with training_step(other, FastOptions(compile=True)) as step:
        assert [step(batch).item() for batch in batches] == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(other.state_dict(), plain.state_dict(), rtol=1e-2, atol=1e-3)


def on_gpu(tolerance, **options):
    return pytest.param(0, FastOptions(**options), tolerance, marks=pytest.mark.gpu)


@pytest.mark.parametrize(
    ("gpu", "fast", "tolerance"),
    [
        (-1, EXACT, 1e-5),
        (-1, FastOptions("bf16"), 2e-2),
        on_gpu(1e-4),
        on_gpu(1e-4, cuda_graphs=True),
        on_gpu(1e-2, cuda_graphs=True, precision="tf32"),
        on_gpu(2e-2, cuda_graphs=True, precision="bf16"),
        on_gpu(2e-2, cuda_graphs=True, precision="bf16", compile=True),
    ],
)
def test_losses_are_those_of_a_cpu_in_float64(gpu, fast, tolerance):
    precise, model = in_float64(twin()), twin(gpu=gpu)
    precise._max_gradient_norm = model._max_gradient_norm
    batches = [*batches_of(precise, 8), *batches_of(precise, 3, rows=5)]
    with training_step(precise) as step:
        expected = [step(batch).item() for batch in batches]
    with training_step(model, fast) as step:
        moved = ({name: column.to(model.device) for name, column in b.items()} for b in batches)
        assert [step(batch).item() for batch in moved] == pytest.approx(expected, rel=tolerance)


def test_fast_stands_for_switches_and_each_can_be_set_apart():
    read = FastOptions.from_params
    assert read(SETTINGS) == EXACT
    assert read({**SETTINGS, "fast": True}) == FastOptions(fast_dropout=True)
    assert read({**SETTINGS, "fast": True, "fast_dropout": False}) == EXACT
    on_gpu = {**SETTINGS, "fast": True, "gpu": 0}
    assert read(on_gpu) == FastOptions(precision="bf16", cuda_graphs=True)
    assert read({**on_gpu, "precision": "tf32"}).precision == "tf32"
    scaled = read({**SETTINGS, "cowclip": True, "cowclip_batch_size": 20})
    assert scaled == FastOptions(cowclip=True, cowclip_scale=4.0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"precision": "tf32"}, "tf32 is a GPU's arithmetic"),
        ({"cuda_graphs": True}, "cuda_graphs needs a GPU"),
        ({"gpu": 0, "fast_dropout": True}, "fast_dropout is for a CPU"),
        ({"gpu": 0, "cuda_graphs": True, "cowclip": True}, "leave one of them out"),
        ({"sparse_embeddings": True, "optimizer": "SGD"}, "a rule for optimizer adam alone"),
        ({"gpu": 0, "cuda_graphs": True, "optimizer": "Adagrad"}, "cannot record optimizer"),
        ({"cowclip_batch_size": 5}, "set cowclip: true"),
    ],
)
def test_switches_that_cannot_work_are_named(given, words):
    (problem,) = fast_problems(SETTINGS | given, None)
    assert words in problem
    assert fast_problems(SETTINGS, None) == []


def test_a_compiler_is_asked_for(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (problem,) = fast_problems({**SETTINGS, "compile": True}, None)
    assert "a C++ compiler" in problem


def test_a_models_own_step_would_be_bypassed(tmp_path):
    class OwnStep(EmbeddingMLP):
        def train_step(self, batch_data):
            return super().train_step(batch_data)

    assert "its own train_step" in fast_problems({**SETTINGS, "cowclip": True}, OwnStep)[0]
    with (
        pytest.raises(SettingsError, match="its own train_step"),
        training_step(build_model(tmp_path, OwnStep), FastOptions(precision="bf16")),
    ):
        pass


@pytest.mark.parametrize("slow", [True, False])
def test_a_cpu_without_instructions_for_bf16_is_told_once(tmp_path, monkeypatch, caplog, slow):
    monkeypatch.setattr(fast, "slow_in_bf16", lambda: slow)
    with training_step(build_model(tmp_path, EmbeddingMLP), FastOptions("bf16")):
        assert caplog.text.count("several times slower on this CPU") == slow
