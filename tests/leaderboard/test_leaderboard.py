"""BARS folders: accepted by a parser of BARS' conventions, refused where BARS would refuse."""

import csv
import hashlib
import io
import re

import pytest
import yaml
from run_records import write_run

from fuxictr_tf4ctr.analysis.results import as_csv
from fuxictr_tf4ctr.errors import DataError, SettingsError
from fuxictr_tf4ctr.leaderboard import submit
from fuxictr_tf4ctr.leaderboard.protocols import PROTOCOLS, Protocol, Split, find_protocol
from fuxictr_tf4ctr.runs.records import read_run
from fuxictr_tf4ctr.settings.reading import list_expids
from fuxictr_tf4ctr.settings.sections import resource_root
from fuxictr_tf4ctr.sweep.folder import SweepFolder

EXPID = "TF4CTR_DCNv2_tiny_001_1a2b3c4d"
ENVIRONMENT = (
    "CPU GPU RAM CUDA python pytorch pandas numpy scipy sklearn pyyaml h5py tqdm fuxictr-tf4ctr "
    "fuxictr"
)


@pytest.fixture()
def record(tmp_path, monkeypatch):
    """What a run's record says of three files, which a protocol describes."""
    rows, sums, settings = {}, [], {}
    for number, split in enumerate(("train", "valid", "test"), start=1):
        file = tmp_path / f"{split}.csv"
        file.write_text("label,user\n" + "1,a\n" * number)
        rows[split] = number
        sums.append(hashlib.md5(file.read_bytes()).hexdigest())
        settings[f"{split}_data"] = str(file)
    protocol = Protocol(Split("Tiny_x1", (1, 2, 3), tuple(sums)), "tiny_x1", 1, 10)
    monkeypatch.setattr("fuxictr_tf4ctr.leaderboard.protocols.PROTOCOLS", (protocol,))
    return {"settings": settings, "data": {"fingerprint": "f", "rows": rows}}


def make_sweep(root, data, seeds=(1, 2, 3), **more):
    """A finished sweep of two points, the first of them under several seeds."""
    sweep = SweepFolder(root / "sweep", "grid")
    sweep.config.mkdir(parents=True)
    for seed in seeds:
        _write(sweep.runs, data, EXPID, seed, 0.8 + 0.01 * seed, more)
    other = "TF4CTR_DCNv2_tiny_002_5e6f7a8b"
    _write(sweep.runs, data, other, 1, 0.7, more)
    sweep.tuner_file.write_text(
        "base_config: ./config/\nbase_expid: TF4CTR_DCNv2_tiny\ndataset_id: tiny_x1\n"
        "tuner_space:\n    c: [0.8, 0.9]\n"
    )
    dataset = {"data_root": "data/", "train_data": "/home/me/train.csv", "valid_data": None}
    (sweep.config / "dataset_config.yaml").write_text(yaml.safe_dump({"tiny_x1": dataset}))
    models = {name: {"model": "TF4CTR_DCNv2", "c": 0.8} for name in (EXPID, other)}
    (sweep.config / "model_config.yaml").write_text(yaml.safe_dump(models))
    points = [{"expid": e, "dataset_id": "tiny_x1_0a1b2c3d", "values": {}} for e in models]
    sweep.write_json({"points": points})
    sweep.write("ranking.csv", as_csv([{"rank": i + 1, "expid": e} for i, e in enumerate(models)]))
    return sweep.path


def _write(root, data, expid, seed, auc, more):
    settings = data["settings"] | more.get("settings", {})
    return write_run(root, expid, seed, auc, settings=settings, data=data["data"])


class BarsFolder:
    """What BARS' script finds in a folder, by its own ways of cutting names and lines."""

    def __init__(self, folder):
        self.model = folder.parent.name
        assert folder.name.startswith(f"{self.model}_") and folder.name == folder.name.strip("_")
        (log,) = folder.glob("*.log")
        self.exp_id = log.name.split(".")[0]
        self.log = log.read_text()
        configs = sorted(path.name for path in folder.glob("*_config*"))
        self.config = configs[0]
        assert configs == [self.config, f"{self.config}.csv", f"{self.config}.yaml"]
        assert sorted(p.name for p in (folder / self.config).iterdir()) == [
            "dataset_config.yaml", "model_config.yaml"
        ]  # fmt: skip
        assert len(list(folder.iterdir())) == 7
        self.environment = {}
        for line in (folder / "environments.txt").read_text().splitlines():
            if line and not line.startswith("["):
                key, value = line.split(": ", 1)
                self.environment[key] = value
                self.version = line.split(":")[-1].strip()
        self.runs = [self.result(line) for line in (folder / "results.csv").open()]
        self.grid = [self.result(line) for line in (folder / f"{self.config}.csv").open()]
        self.tuner = yaml.safe_load((folder / f"{self.config}.yaml").read_text())
        self.models = yaml.safe_load((folder / self.config / "model_config.yaml").read_text())
        self.data = yaml.safe_load((folder / self.config / "dataset_config.yaml").read_text())
        self.readme = (folder / "README.md").read_text()

    @staticmethod
    def result(line):
        cells = next(csv.reader(io.StringIO(line)))
        result = {"seed": cells.pop(0)} if cells[0].startswith("seed=") else {}
        assert re.fullmatch(r" \d{8}-\d{6}", cells[0])
        names = ["command", "exp_id", "dataset_id", "train", "val", "test"]
        assert [re.match(r"\[(\w+)\] ", cell)[1] for cell in cells[1:]] == names
        result |= {"exp_id": cells[2].split("] ")[1], "train": cells[4].split("] ")[1]}
        metrics = [part.split(":") for part in cells[-1].split("]")[-1].split("-")]
        return result | {name.strip(): float(value) for name, value in metrics}


def test_a_sweep_becomes_a_folder_that_bars_scripts_read(tmp_path, record):
    sweep = make_sweep(tmp_path, record)
    submission = submit(sweep, tmp_path / "bars", contributor="A. Name <https://a.org>")
    folder = tmp_path / "bars/ranking/ctr/TF4CTR_DCNv2/TF4CTR_DCNv2_tiny_x1"
    assert submission.folder == folder and submission.problems == []
    bars = BarsFolder(folder)
    assert bars.exp_id == EXPID
    assert re.fullmatch(r"\w+_\d{3}_[0-9a-f]{8}", bars.exp_id)
    assert bars.config == "TF4CTR_DCNv2_tiny_x1_tuner_config_01"
    assert " ".join(bars.environment) == ENVIRONMENT
    assert bars.version == bars.environment["fuxictr"] == "2.3.10"
    assert [run["seed"] for run in bars.runs] == ["seed=1", "seed=2", "seed=3"]
    # Six decimals, never 1e-05, which BARS' script would cut at the dash.
    assert [run["AUC"] for run in bars.runs] == [0.81, 0.82, 0.83]
    assert bars.runs[0]["logloss"] == 0.00001
    assert {run["train"] for run in bars.runs} == {"N.A."}
    assert [run["exp_id"] for run in bars.grid] == list(bars.models)
    assert set(bars.tuner) == {"base_config", "base_expid", "dataset_id", "tuner_space"}
    assert bars.log.startswith("Params: {")
    (dataset,) = bars.data.values()
    assert dataset["train_data"] == "../data/Tiny_x1/train.csv"
    assert dataset["valid_data"] is None


def test_the_guide_has_bars_sections_and_the_runs_mean(tmp_path, record):
    folder = submit(make_sweep(tmp_path, record), tmp_path / "bars").folder
    readme = (folder / "README.md").read_text()
    assert readme.startswith("## TF4CTR_DCNv2_tiny_x1\n")
    headings = re.findall(r"^### (\w+)", readme, re.M)
    assert headings == ["Environments", "Dataset", "Code", "Results", "Logs"]
    for target in re.findall(r"\]\(#(\w+)\)", readme):
        assert target.capitalize() in headings
    assert readme.count("```") % 2 == 0
    table = re.search(r"(\| Runs.*?)\n\n", readme + "\n\n", re.S)[1].splitlines()
    assert len({line.count("|") for line in table}) == 1 and len(table) == 2 + 3 + 2
    assert table[-2].startswith("| Avg | 0.820000 |")
    assert table[-1].startswith("| Std | &#177;0.00816497 |")  # of all runs, as BARS has it
    (linked,) = re.findall(r"\]\(\./([^)]+)\)", readme)
    assert (folder / linked / "model_config.yaml").is_file()
    assert f"--config {linked} --expid {EXPID}" in readme


def test_the_leaderboard_row(tmp_path, record):
    sweep = make_sweep(tmp_path, record)
    row = submit(sweep, tmp_path / "bars", contributor="A. Name <https://a.org>").leaderboard_row
    table = (tmp_path / "bars/docs/CTR/leaderboard/tiny_x1.csv").read_text()
    (read,) = csv.DictReader(io.StringIO(table))
    header = "Year,Publication,Model,Paper URL,AUC,Logloss,Running Steps,Contributor"
    assert table == f"{header}\n{row}\n"
    assert read["AUC"] == "0.820000" and read["Year"] == "2024"
    assert read["Running Steps"].endswith("/ranking/ctr/TF4CTR_DCNv2/TF4CTR_DCNv2_tiny_x1")
    assert read["Contributor"] == '<a href="https://a.org">A. Name</a>'


def test_a_run_alone_is_a_grid_of_one_point(tmp_path, record):
    run = _write(tmp_path / "runs", record, "TF4CTR_DCNv2_tiny_x1", 5, 0.8, {})
    submission = submit(run.folder, tmp_path / "bars")
    bars = BarsFolder(submission.folder)
    assert re.fullmatch(r"TF4CTR_DCNv2_tiny_x1_001_[0-9a-f]{8}", bars.exp_id)
    assert list(bars.models) == [bars.exp_id] == [bars.grid[0]["exp_id"]]
    assert "seed" not in bars.runs[0]
    assert any("1 seed" in note for note in submission.notes)


BREAKS = {
    "embedding size": ({"embedding_dim": 16}, "embedding_dim is 16, protocol tiny_x1 asks for 10"),
    "min count": ({"min_categr_count": 2}, "min_categr_count is 2, protocol tiny_x1 asks for 1"),
    "part of the rows": ({"n_rows": 100}, "n_rows is 100"),
    "own split": ({"valid_size": 0.1}, "valid_size is 0.1"),
    "no data": ({"train_data": "gone.csv"}, "gone.csv is no file whose md5"),
}


@pytest.mark.parametrize(("settings", "reason"), BREAKS.values(), ids=BREAKS)
def test_what_bars_would_not_accept_is_refused_with_the_reason(tmp_path, record, settings, reason):
    sweep = make_sweep(tmp_path, record, settings=settings)
    with pytest.raises(SettingsError) as error:
        submit(sweep, tmp_path / "bars")
    assert reason in str(error.value) and "--draft" in str(error.value)
    assert not (tmp_path / "bars").exists()


def test_other_data_and_equal_splits_are_refused(tmp_path, record):
    (tmp_path / "train.csv").write_text("label,user\n0,a\n")
    record["settings"]["test_data"] = record["settings"]["valid_data"]
    record["settings"]["negative_sampling"] = 0.5
    record["data"]["rows"]["train"] = 9
    with pytest.raises(SettingsError) as error:
        submit(make_sweep(tmp_path, record), tmp_path / "bars")
    said = str(error.value)
    for reason in ("train.csv has md5", "train has 9 rows, Tiny_x1 has 1", "the same data",
                   "negative_sampling is 0.5"):  # fmt: skip
        assert reason in said


def test_unfinished_misnamed_and_unlike_runs_are_refused(tmp_path, record):
    name = "model.v2_config"
    run = _write(tmp_path / "runs", record, name, 1, 0.8, {})
    run.status = "interrupted"
    run.test = {"AUC": 0.8, "NDCG(k=1,2)": 0.5, "simple-AUC": 0.5}
    del run.machine["cpu"]
    run.save()
    with pytest.raises(SettingsError) as error:
        submit(run.folder, tmp_path / "bars")
    said = str(error.value)
    for reason in ("interrupted, not finished", "cut it at a dot", "no test logloss",
                   "'simple-AUC'", "'NDCG(k=1,2)'", "does not tell cpu"):  # fmt: skip
        assert reason in said
    sweep = make_sweep(tmp_path, record)
    odd = read_run(next(sweep.glob(f"runs/*/{EXPID}/*2")))
    odd.settings = {**odd.settings, "c": 0.9}
    odd.data = {**odd.data, "fingerprint": "g"}
    odd.save()
    with pytest.raises(SettingsError, match="differs in c, not in its seed alone"):
        submit(sweep, tmp_path / "bars")


def test_a_draft_is_written_and_says_what_it_breaks(tmp_path, record):
    sweep = make_sweep(tmp_path, record, settings={"embedding_dim": 16})
    submission = submit(sweep, tmp_path / "bars", draft=True)
    assert "embedding_dim is 16" in submission.problems[0]
    readme = BarsFolder(submission.folder).readme
    assert "**A draft, not to be submitted.**" in readme and "embedding_dim is 16" in readme
    assert not (tmp_path / "bars/docs").exists()  # no row for the leaderboard


def test_nothing_is_overwritten_and_other_folders_are_no_source(tmp_path, record, monkeypatch):
    sweep = make_sweep(tmp_path, record)
    folder = submit(sweep, tmp_path / "bars").folder
    before = (folder / "README.md").read_text()
    with pytest.raises(SettingsError, match="is there already"):
        submit(sweep, tmp_path / "bars")
    assert (folder / "README.md").read_text() == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    with pytest.raises(DataError, match=r"neither run\.json nor sweep\.json"):
        submit(tmp_path, tmp_path / "other")
    with pytest.raises(SettingsError, match="finished expid"):
        submit(sweep, tmp_path / "other", expid="nothing")
    run = next(sweep.glob(f"runs/*/{EXPID}/*"))
    with pytest.raises(SettingsError, match=f"is a run of {EXPID}: --expid nothing is for a sweep"):
        submit(run, tmp_path / "other", expid="nothing")
    assert submit(run, tmp_path / "other", expid=EXPID).folder.is_dir()
    monkeypatch.undo()
    with pytest.raises(SettingsError, match="has no BARS protocol"):
        submit(sweep, tmp_path / "other")


def test_the_shipped_protocols_are_the_readmes_data_sets():
    readme = (resource_root() / "data" / "README.md").read_text()
    for protocol in PROTOCOLS:
        for digest in protocol.split.md5:
            assert digest in readme
        for rows in protocol.split.rows:
            assert f"{rows:,}" in readme


def test_every_bars_experiment_keeps_its_protocol():
    config = resource_root() / "config"
    sections = {}
    for file in (config / "dataset_config").glob("*.yaml"):
        sections |= yaml.safe_load(file.read_text())
    ids = {protocol.bars_id: protocol for protocol in PROTOCOLS}
    found = {}
    for expid, section in list_expids(config).items():
        bars_id = next((name for name in ids if expid.endswith(f"_{name}")), None)
        if bars_id is not None:
            settings = sections[section["dataset_id"]] | section
            assert find_protocol(settings) == ids[bars_id]
            assert settings["embedding_dim"] == ids[bars_id].embedding_dim
            assert settings["min_categr_count"] == ids[bars_id].min_categr_count
            found.setdefault(bars_id, []).append(expid)
    named = ("criteo_x4_001", "avazu_x4_001", "frappe_x1", "movielenslatest_x1", "kkbox_x1")
    for bars_id in named:
        assert {f"TF4CTR_{bars_id}", f"TF4CTR_DCNv2_{bars_id}"} <= set(found[bars_id])
