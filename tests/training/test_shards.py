"""Tables that are not made when a model is built, or divided in files, against whole ones."""

import json
import multiprocessing
import resource
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import ALL_KINDS, FEATURES, make_feature_map
from torch import Tensor, nn

from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.registry import find_model
from fuxictr_tf4ctr.training import Checkpoints, load_weights, shards
from fuxictr_tf4ctr.training.checkpoints import merge_weights, write_whole
from fuxictr_tf4ctr.training.shards import (
    Piece,
    Shards,
    UnmadeTable,
    begin_save,
    end_save,
    shards_folder,
    tables_unmade,
    write_shard,
)

OPTIONS = {
    "model_root": "unused",
    "verbose": 0,
    "metrics": ["AUC"],
    "optimizer": "adam",
    "loss": "binary_crossentropy",
    "learning_rate": 1e-3,
    "embedding_dim": 6,
}


def built(name, feature_map, **options):
    """A model from a seed, and the number its generator would draw next."""
    torch.manual_seed(3)
    return find_model(name)(feature_map, **OPTIONS | options), torch.rand(1)


@pytest.mark.parametrize("part", [1024, 1 << 20])
@pytest.mark.parametrize("rows", [1, 97])
@pytest.mark.parametrize("name", ["TF4CTR_DeepFM", "TF4CTR_FinalNet"])
def test_rows_made_later_and_all_other_weights_are_what_they_would_have_been(
    name, rows, part, monkeypatch
):
    monkeypatch.setattr(shards, "_PART", part)
    specs = {
        field: spec | ({"vocab_size": rows * spec["vocab_size"]} if "vocab_size" in spec else {})
        for field, spec in ALL_KINDS.items()
    }
    feature_map = make_feature_map(specs)
    whole, expected = built(name, feature_map)
    with tables_unmade():
        model, drawn = built(name, feature_map)
    assert torch.equal(drawn, expected)
    tables = 0
    for (field, ours), theirs in zip(model.named_parameters(), whole.parameters(), strict=True):
        if not isinstance(ours, UnmadeTable):
            assert torch.equal(ours, theirs), field
            continue
        tables += 1
        middle = len(theirs) // 2
        for first, last in ((0, middle), (middle, len(theirs)), (1, 3)):
            made = torch.full((last - first, theirs.shape[1] + 2), 7.0)
            ours.make_rows(first, made[:, : theirs.shape[1]])  # as in a table of greater width
            assert torch.equal(made[:, : theirs.shape[1]], theirs[first:last]), field
            assert (made[:, theirs.shape[1] :] == 7).all()
    assert tables >= 5


@pytest.mark.parametrize("count", [624, 625, 20_000, 3_000_000])
@pytest.mark.parametrize("before", [0, 1, 623, 624, 700])
def test_a_generator_can_leave_numbers_out(before, count):
    torch.manual_seed(3)
    torch.rand(before)
    state = torch.get_rng_state()
    torch.rand(count)
    expected = torch.rand(2_000)
    torch.set_rng_state(shards._later(state, count))
    assert torch.equal(torch.rand(2_000), expected)


def test_tables_beside_fuxictrs_layers_are_made():
    with tables_unmade():
        assert not nn.Embedding(3, 2).weight.is_meta


def test_what_cannot_be_drawn_in_parts_is_refused():
    with tables_unmade():
        model, _ = built("TF4CTR_DeepFM", make_feature_map(FEATURES))
    table = next(each for each in model.parameters() if isinstance(each, UnmadeTable))
    with pytest.raises(SettingsError, match="drawn in parts: leave table_sharding out"):
        nn.init.trunc_normal_(table)
    with pytest.raises(SettingsError, match="by normal, which cannot"):
        nn.init.normal_(table[:, 1:])


def memory_of_a_quarter(answer) -> None:
    """Send by how many bytes memory peaked while a model was built and a quarter of it made."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    specs = {"user": FEATURES["user"] | {"vocab_size": 4_000_000}}
    with tables_unmade():
        model, _ = built("TF4CTR_DeepFM", make_feature_map(specs), embedding_dim=16)
    tables = [each for each in model.parameters() if isinstance(each, UnmadeTable)]
    table = max(tables, key=Tensor.numel)
    table.make_rows(len(table) // 2, torch.empty(len(table) // 4, table.shape[1]))
    answer.send(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def test_nobody_has_a_whole_table():
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    child = context.Process(target=memory_of_a_quarter, args=(theirs,))
    child.start()
    assert ours.poll(120)
    peak = ours.recv()
    child.join()
    assert peak < 4 * 4_000_000 * 16 / 2  # a quarter and some parts; a whole table is 256 MB


TABLES = {"user": torch.arange(40.0).view(10, 4), "item": torch.arange(6.0).view(3, 2)}
NAMES = {"user": "user", "item": "item", "clicked": "item"}
DENSE = {"bias": torch.tensor([0.5, -1.0]), "steps": torch.tensor(7), "flags": torch.ones(3) > 0}


def save(path: Path, step: int = 3, cuts: tuple[int, ...] = (0, 4, 10)) -> dict:
    """Write the tables as ranks do that have the rows between the cuts, and "item" the last."""
    folder = begin_save(path, step)
    for rank, (first, last) in enumerate(pairwise(cuts)):
        wider = torch.nn.functional.pad(TABLES["user"][first:last], (0, 3))
        item = TABLES["item"][: 3 if last == 10 else 0]
        sums = Piece("user:sum", first, TABLES["user"][first:last, 0])
        user = Piece("user", first, wider[:, :4])
        write_shard(folder, rank, [user, Piece("item", 0, item), sums])
    return {"save": folder.name, "ranks": len(cuts) - 1, "tables": NAMES}


@pytest.mark.parametrize("block", [1, 40, 1 << 20])
def test_any_rows_can_be_read_and_a_merged_file_is_as_torch_saves_it(tmp_path, block, monkeypatch):
    monkeypatch.setattr(shards, "_BLOCK", block)
    path = tmp_path / "twin.model"
    kept = save(path)
    divided = Shards(path, kept)
    for first, last in ((0, 10), (0, 3), (3, 5), (4, 10), (9, 10)):
        rows = torch.zeros(last - first, 6)
        divided.read("user", first, rows[:, 1:5])
        assert torch.equal(rows[:, 1:5], TABLES["user"][first:last])
        assert not rows[:, [0, 5]].any()
        sums = torch.zeros(last - first)
        divided.read("user:sum", first, sums)
        assert torch.equal(sums, TABLES["user"][first:last, 0])
    write_whole({"weights": DENSE, "shards": kept}, path)
    assert merge_weights(path) and not shards_folder(path).exists()
    assert zipfile.ZipFile(path).testzip() is None
    merged = torch.load(path)
    expected = DENSE | {name: TABLES[table] for name, table in NAMES.items()}
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert merged["clicked"].data_ptr() == merged["item"].data_ptr()
    assert not merge_weights(path)


def test_shards_are_in_the_safetensors_format(tmp_path):
    folder = shards_folder(tmp_path / "twin.model") / save(tmp_path / "twin.model")["save"]
    content = (folder / "rank-00001.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0 and all(type(each) is str for each in header["__metadata__"].values())
    begin, end = header["user"]["data_offsets"]
    assert (header["user"]["dtype"], header["user"]["shape"]) == ("F32", [6, 4])
    numbers = bytearray(content[8 + length + begin : 8 + length + end])
    assert torch.frombuffer(numbers, dtype=torch.float32).tolist() == list(range(16, 40))


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "is missing": Path.unlink,
    "holds rows of save 2-": lambda file: file.write_bytes(
        (shards_folder(file.parents[2] / "b.state") / "x").read_bytes()
    ),
    "wrong checksum of rows": flipped,
    "is damaged or cut off": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "is no shard": lambda file: file.write_bytes(b"\xff" * 40),
    "Expecting value": lambda file: file.write_bytes(b"\x02" + bytes(7) + b"no" * 40),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_shards_missing_of_another_step_or_damaged_are_one_message(tmp_path, words):
    path = tmp_path / "a.state"
    kept = save(path)
    other = save(tmp_path / "b.state", 2)
    older = shards_folder(tmp_path / "b.state") / other["save"] / "rank-00001.safetensors"
    older.rename(older.parents[1] / "x")
    file = shards_folder(path) / kept["save"] / "rank-00001.safetensors"
    DAMAGES[words](file)
    with pytest.raises(DataError, match=words) as raised:
        divided = Shards(path, kept)
        for name in ("user", "item", "user:sum"):
            for _ in divided.blocks(name):
                pass
    assert str(file) in str(raised.value) and f"remove {path}" in str(raised.value)


def test_rows_that_no_rank_wrote_or_another_model_has_are_refused(tmp_path):
    path = tmp_path / "twin.model"
    kept = save(path)
    with pytest.raises(DataError, match="rows of user are not all there"):
        save(path, cuts=(0, 4, 10))  # another save does no harm
        Shards(path, save(path, cuts=(3, 10)))
    divided = Shards(path, kept)
    for name, first, rows in (("user", 8, torch.empty(3, 4)), ("user", 0, torch.empty(3, 5))):
        with pytest.raises(DataError, match="another model's"):
            divided.read(name, first, rows)


def test_a_save_that_was_cut_off_leaves_the_state_before_it(tmp_path):
    kept = Checkpoints(tmp_path, steps=1)
    whole_saves = {step: save(kept.file(step), step) for step in (1, 2, 3)}
    for step in (1, 2):
        write_whole({"format": 2, "shards": whole_saves[step]}, kept.file(step))
    end_save(kept.file(2), whole_saves[2])
    assert not shards_folder(kept.file(3)).with_suffix(".state").exists()
    kept.save({"shards": save(kept.file(4), 4)}, 4)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [f"step-{step:012d}.{end}" for step in (2, 4) for end in ("shards", "state")]
    Shards(kept.file(2), whole_saves[2]).read("user", 0, torch.empty(10, 4))
    kept.remove()
    assert not tmp_path.exists()


def test_a_merged_file_is_mapped_into_a_model_whose_tables_were_not_made(tmp_path):
    whole, _ = built("TF4CTR_DeepFM", make_feature_map(FEATURES))
    own = {name: each for name, each in whole.state_dict().items() if "embedding_layers" in name}
    path = tmp_path / "twin.model"
    folder = begin_save(path, 1)
    write_shard(folder, 0, [Piece(name, 0, each) for name, each in own.items()])
    kept = {"save": folder.name, "ranks": 1, "tables": {name: name for name in own}}
    dense = {name: each for name, each in whole.state_dict().items() if name not in own}
    write_whole({"weights": dense, "shards": kept}, path)
    for _ in range(2):
        with tables_unmade(noted=False):
            model, _ = built("TF4CTR_DeepFM", make_feature_map(FEATURES))
        load_weights(model, path)
        for name, each in model.state_dict().items():
            assert torch.equal(each, whole.state_dict()[name]), name
            assert not isinstance(each, UnmadeTable)
            if name not in own:
                each.add_(0)
        merge_weights(path)
    mapped = Path("/proc/self/maps")
    lines = mapped.read_text().splitlines() if mapped.exists() else [f"- r--s {path}"]
    # Linux lets no process have more pages that it may write to than there is memory.
    assert {line.split()[1] for line in lines if line.endswith(str(path))} == {"r--s"}


def test_a_pytorch_too_old_to_merge_is_said(tmp_path, monkeypatch):
    path = tmp_path / "twin.model"
    write_whole({"weights": DENSE, "shards": save(path)}, path)
    before = path.read_bytes()
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.5.1+cpu"))
    with pytest.raises(SettingsError, match="or later, this is 2"):
        merge_weights(path)
    assert path.read_bytes() == before
    read = shards.read_mapped(path)["weights"]  # as that PyTorch does
    assert read.keys() == DENSE.keys()
    assert all(torch.equal(read[name], DENSE[name]) for name in DENSE)
