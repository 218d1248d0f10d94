"""``fuxictr plan``: what it computes without memory is what a real step takes."""

from itertools import chain

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.datasets import H5DataLoader, encode_dataset, load_feature_map
from fuxictr_tf4ctr.datasets.feature_map import LABEL_DTYPE, column_dtype
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.runs.plan import plan
from fuxictr_tf4ctr.settings.reading import RUNS_ELSEWHERE, load_settings


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo data, encoded in a folder of its own."""
    root = {"data_root": str(tmp_path_factory.mktemp("data"))}
    encode_dataset(load_settings("TF4CTR_DCNv2_demo", overrides=root).params)
    return lambda expid, **more: load_settings(expid, overrides=root | more, needs=RUNS_ELSEWHERE)


@pytest.mark.parametrize("expid", ["TF4CTR_DCNv2_demo", "DeepFM_demo"])
def test_a_plan_is_what_a_real_step_takes(demo, expid):
    settings = demo(expid)
    found = plan(settings)
    dataset = encode_dataset(settings.params)
    feature_map = load_feature_map(dataset, settings.params)
    model = settings.model_class(feature_map, **settings.params)
    batch = next(iter(H5DataLoader(feature_map, dataset.train, batch_size=settings["batch_size"])))
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = list(model.parameters())
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model.add_loss(model(batch), model.get_labels(batch))
        loss.backward()
    for weight in weights:
        kept.pop(weight.untyped_storage().data_ptr(), None)
    model.optimizer.step()
    state = chain.from_iterable(each.values() for each in model.optimizer.state.values())
    moments = [tensor for tensor in state if tensor.ndim]  # the count of steps aside
    held = [*weights, *(weight.grad for weight in weights), *moments]
    assert found.cost.memory == pytest.approx(sum(tensor.nbytes for tensor in held), rel=1e-3)
    assert found.activations == pytest.approx(sum(kept.values()), rel=1e-3)
    assert found.batch == sum(column.nbytes for column in batch.values())
    assert found.flops == counter.get_total_flops() > 0
    assert (found.rows, found.steps) == (24_000, 24)
    types = [column_dtype(spec) for spec in feature_map.features.values()] + [LABEL_DTYPE]
    assert 0 <= found.rows_bytes - 24_000 * sum(type.itemsize for type in types) < 24_000 * 4


def test_tables_that_no_rank_can_hold_are_divided(demo):
    wide = {"embedding_dim": 65_536, "embedding_regularizer": 0}
    whole = plan(demo("TF4CTR_demo", **wide), ranks=4)
    divided = plan(demo("TF4CTR_demo", **wide, table_sharding="row_wise"), ranks=4)
    # Weight, gradient and two moments; a quarter of the weights, and a number a row.
    tables = 4 * whole.work.table_parameters
    assert whole.cost.tables == (tables, tables, 2 * tables)
    assert divided.cost.tables == (tables / 4, 0, divided.work.table_rows)
    assert divided.cost.others == whole.cost.others
    adam = {**wide, "table_sharding": "row_wise", "table_optimizer": "adam"}
    assert plan(demo("TF4CTR_demo", **adam), ranks=4).cost.tables == (tables / 4, 0, tables / 2)
    room = whole.memory - 2 * tables
    assert "table_sharding: row_wise" in whole.problem(room)
    assert divided.problem(room) is None


def test_what_cannot_be_planned_is_refused(demo, tmp_path):
    with pytest.raises(SettingsError, match="Adafactor depends on values"):
        plan(demo("TF4CTR_demo", optimizer="Adafactor"))
    with pytest.raises(SettingsError, match="multiple of the ranks"):
        plan(demo("TF4CTR_demo"), ranks=3)
    with pytest.raises(SettingsError, match="every host needs a rank"):
        plan(demo("TF4CTR_demo"), ranks=1, hosts=2)
    with pytest.raises(DataError, match="fuxictr encode"):
        plan(demo("TF4CTR_demo", data_root=str(tmp_path)))


def test_the_command_says_what_does_not_fit(demo, capsys):
    root = demo("TF4CTR_demo")["data_root"]
    command = ["plan", "TF4CTR_demo", "--set", f"data_root={root}", "--workers", "2"]
    assert main([*command, "--gpu-memory", "80"]) == 0
    assert "together" in capsys.readouterr().out
    assert main([*command, "--gpu-memory", "0.0001"]) == 1
    assert "does not fit" in capsys.readouterr().err
