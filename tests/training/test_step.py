"""Our step against FuxiCTR's on the same batches, in float64: rounding can hide no mistake."""

import pytest
import torch
from fuxictr.pytorch.layers import LogisticRegression
from fuxictr.pytorch.models import BaseModel
from helpers import ALL_KINDS, FEATURES, make_feature_map, random_batch
from tiny_model import EmbeddingMLP, build_batches, build_model

import model_zoo
from fuxictr_tf4ctr.training.step import (
    TrainingStep,
    clip_gradients,
    step_clipped,
    training_step,
    use_fast_kernels,
)

REGULARIZERS = [None, 0.05, "l1(0.01)", "l1_l2(0.01,0.05)"]


class DeepAndWide(EmbeddingMLP):
    """Adds a logistic regression, whose 1-dim tables are regularised as embeddings."""

    def __init__(self, feature_map, **kwargs):
        super().__init__(feature_map, **kwargs)
        self.lr_layer = LogisticRegression(feature_map)
        self.compile(kwargs["optimizer"], "binary_crossentropy", 0.01)


def in_float64(model):
    model.double()
    get_labels = type(model).get_labels
    model.get_labels = lambda batch: get_labels(model, batch).double()
    model._max_gradient_norm = 0.05
    model.train()
    return model


def tiny(tmp_path, **kwargs):
    return in_float64(build_model(tmp_path, DeepAndWide, **{"optimizer": "adam", **kwargs}))


def twin(features=FEATURES, model_class=model_zoo.TF4CTR_DCNv2, **kwargs):
    torch.manual_seed(1)
    options = {"embedding_dim": 4, "net_dropout": 0.2, "complex_hidden_units": [5], **kwargs}
    return in_float64(model_class(make_feature_map(features), **options))


def assert_same_training(theirs, ours, batches):
    """Train two equal models, one by FuxiCTR's step and one by ours."""
    with training_step(ours) as step:
        assert isinstance(step, TrainingStep)
        _compare_steps(theirs, ours, step, batches)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-6, atol=1e-8)


def _compare_steps(theirs, ours, step, batches):
    for number, batch in enumerate(batches):
        losses = []
        for train in (theirs.train_step, step):
            torch.manual_seed(number)  # the same dropout
            losses.append(train(batch).item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-9)
        gradients = [
            {name: weight.grad for name, weight in model.named_parameters()}
            for model in (theirs, ours)
        ]
        assert {k for k, g in gradients[0].items() if g is None} == {
            k for k, g in gradients[1].items() if g is None
        }
        for name, gradient in gradients[0].items():
            if gradient is not None:
                torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("net", REGULARIZERS)
@pytest.mark.parametrize("embedding", REGULARIZERS)
def test_a_step_of_a_fuxictr_model_is_fuxictrs(tmp_path, embedding, net):
    kwargs = {"embedding_regularizer": embedding, "net_regularizer": net, "optimizer": "SGD"}
    models = [tiny(tmp_path, **kwargs) for _ in range(2)]
    assert_same_training(*models, build_batches(1, rows=100))


@pytest.mark.parametrize("embedding", REGULARIZERS)
@pytest.mark.parametrize("optimizer", ["adam", "SGD", "AdamW", "RMSprop", "Adagrad"])
def test_a_step_of_a_twin_is_fuxictrs(optimizer, embedding):
    models = [
        twin(optimizer=optimizer, embedding_regularizer=embedding, net_regularizer=0.01)
        for _ in range(2)
    ]
    batches = [random_batch(models[0].feature_map, rows=12, seed=seed) for seed in range(6)]
    assert_same_training(*models, batches)


def test_tables_that_two_features_share_are_regularised_as_fuxictr_does():
    # FuxiCTR's own layers turn numbers into float32.
    features = {k: v for k, v in ALL_KINDS.items() if v["type"] not in ("numeric", "embedding")}
    kwargs = {"embedding_regularizer": 0.1, "net_regularizer": "l1(0.1)", "optimizer": "SGD"}
    models = [twin(features, **kwargs) for _ in range(2)]
    batches = [random_batch(models[0].feature_map, rows=9, seed=seed) for seed in range(3)]
    assert_same_training(*models, batches)


def test_in_float32_the_losses_agree_to_float_tolerance(tmp_path):
    theirs, ours = (
        build_model(tmp_path, EmbeddingMLP, embedding_regularizer=0.01) for _ in range(2)
    )
    for model in (theirs, ours):
        model._max_gradient_norm = 10.0
        model.train()
    with training_step(ours) as step:
        for number, batch in enumerate(build_batches(1)):
            torch.manual_seed(number)
            expected = theirs.train_step(batch).item()
            torch.manual_seed(number)
            assert step(batch).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ["compute_loss", "regularization_loss"])
def test_a_models_own_loss_is_kept(tmp_path, method):
    original = getattr(BaseModel, method)
    doubled = type("Doubled", (DeepAndWide,), {method: lambda *args: 2 * original(*args)})
    models = [
        in_float64(build_model(tmp_path, doubled, optimizer="SGD", embedding_regularizer=0.1))
        for _ in range(2)
    ]
    assert_same_training(*models, build_batches(1, rows=60))


def test_a_models_own_step_and_optimizers_are_kept(tmp_path):
    class OwnStep(EmbeddingMLP):
        def train_step(self, batch_data):
            return super().train_step(batch_data)

    model = build_model(tmp_path, OwnStep)
    with training_step(model) as step:
        assert step == model.train_step
    assert model.optimizer.param_groups[0]["fused"] is None
    model = build_model(tmp_path, EmbeddingMLP)
    model.optimizer = {"net": model.optimizer}
    with training_step(model) as step:
        assert step == model.train_step


@pytest.mark.parametrize("name", ["Adam", "SGD"])
@pytest.mark.parametrize("max_norm", [0.1, 1000.0])
def test_a_step_that_clips_as_it_reads_is_clipping_and_a_step(name, max_norm):
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.ones(n, 3)) for n in (2, 7, 1)] for _ in range(2))
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        mine.grad = torch.randn(mine.shape)
        other.grad = mine.grad.clone()
    torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    getattr(torch.optim, name)(theirs, lr=0.1).step()
    optimizer = getattr(torch.optim, name)(ours, lr=0.1, fused=True)
    step_clipped(optimizer, [weight.grad for weight in ours[:2]], max_norm)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
        torch.testing.assert_close(mine.grad, other.grad)
    assert not hasattr(optimizer, "grad_scale")


@pytest.mark.parametrize("max_norm", [0.1, 5.0, 1000.0])
def test_clipping_equals_torchs(max_norm):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(7, 3)) for _ in range(4)]
    others = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
    for weight, other in zip(weights[:3], others[:3], strict=True):
        weight.grad = torch.randn(7, 3)
        other.grad = weight.grad.clone()
    torch.nn.utils.clip_grad_norm_(others, max_norm)
    clip_gradients([weight.grad for weight in weights[:3]], max_norm)
    for weight, other in zip(weights[:3], others[:3], strict=True):
        torch.testing.assert_close(weight.grad, other.grad, rtol=1e-6, atol=0)
    clip_gradients([], max_norm)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [("Adam", "fused"), ("SGD", "fused"), ("RMSprop", "foreach"), ("Adafactor", "foreach")],
)
def test_the_kernel_for_all_weights_is_taken_where_there_is_one(name, kernel):
    optimizer = getattr(torch.optim, name)([torch.nn.Parameter(torch.ones(3, 2))], lr=0.1)
    use_fast_kernels(optimizer)
    assert optimizer.param_groups[0][kernel] is True
    chosen = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))], fused=False)
    use_fast_kernels(chosen)
    assert chosen.param_groups[0]["fused"] is False
