"""Every command and every Python block of the guides is run, page by page, in its order.

A block may be left out by a comment before it that says why: ``<!-- not run: … -->``. What stands
for a run's folder in a page, RUN and BASE_RUN (or RUN_A and RUN_B, or RUN, TONIGHT and SCRATCH), is
the first run and those after it. Pages about finished runs begin with two. Frappe's files are rows
made up in its form.
"""

import logging
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from fuxictr_tf4ctr.cli import main

ROOT = Path(__file__).resolve().parents[1]
FIRST = ("quickstart", "cookbook", "writing_a_twin", "nightly")
BEGINNINGS = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in FIRST)]
ABOUT_RUNS = [ROOT / "docs" / f"{name}.md" for name in ("serving", "report", "sweeps", "scaling")]
LONG = {"scaling.md"}  # starts Ray and ranks
OTHERS = sorted(set((ROOT / "docs").glob("*.md")) - set(BEGINNINGS) - set(ABOUT_RUNS))
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```(bash|python|yaml)\n(.*?)^```", re.M | re.S)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and content of the blocks to be run."""
    for not_run, language, content in BLOCK.findall(page.read_text()):
        if not not_run:
            yield language, content


def write_own_data(folder: Path) -> None:
    """Write the csv files that the pages take for the reader's own."""
    rng = random.Random(1)
    (folder / "my_data").mkdir()
    for path, rows in (
        ("my_data/train.csv", 3000),
        ("my_data/valid.csv", 400),
        ("my_data/test.csv", 400),
        ("new.csv", 50),
    ):
        lines = ["user,item,price,clicks,click"]
        for _ in range(rows):
            user, item = rng.randrange(40), rng.randrange(30)
            clicks = "^".join(f"i{rng.randrange(30)}" for _ in range(rng.randrange(4)))
            click = int(rng.random() < (0.6 if (user + item) % 3 else 0.2))
            lines.append(f"u{user},i{item},{rng.random() * 20:.2f},{clicks},{click}")
        (folder / path).write_text("\n".join(lines) + "\n")


def write_frappe(folder: Path) -> None:
    """Write made-up rows with the columns of Frappe."""
    rng = random.Random(2)
    columns = ["user", "item", "daytime", "weekday", "isweekend"]
    columns += ["homework", "cost", "weather", "country", "city"]
    (folder / "data" / "frappe_x1").mkdir(parents=True)
    for split, rows in (("train", 500), ("valid", 200), ("test", 200)):
        lines = [",".join(["label", *columns])]
        for _ in range(rows):
            ids = [100 * field + rng.randrange(20) for field in range(len(columns))]
            label = int(rng.random() < (0.7 if sum(ids[:2]) % 3 else 0.2))
            lines.append(",".join(map(str, [label, *ids])))
        path = folder / "data" / "frappe_x1" / f"{split}.csv"
        path.write_text("\n".join(lines) + "\n")


def copy_demo(folder: Path, training_rows: int | None = 3000) -> None:
    """Copy the demo's data set, of its 24,000 training rows so many that a run takes a second."""
    copy = folder / "data" / "demo"
    shutil.copytree(ROOT / "data" / "demo", copy, dirs_exist_ok=True)
    lines = (copy / "train.csv").read_text().splitlines(keepends=True)
    (copy / "train.csv").write_text("".join(lines[:training_rows]))


def write_demo_rows(folder: Path) -> None:
    """Write the csv files of pages about the demo's runs, with two columns that no model takes."""
    header, *rows = (ROOT / "data" / "demo" / "test.csv").read_text().splitlines()[:200]
    lines = [f"user_id,item_id,{header}"]
    lines += [f"{number},{number % 7},{row}" for number, row in enumerate(rows)]
    (folder / "parts").mkdir()
    for path in ("new.csv", "parts/1.csv"):
        (folder / path).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def finished_runs(tmp_path_factory) -> Path:
    """A folder with runs of the demo: a twin's and its base model's."""
    folder = tmp_path_factory.mktemp("finished")
    for expid, time in (("TF4CTR_DCNv2_demo", "20260101-120000"), ("DCNv2_demo", "")):
        options = ["--set", "epochs=1", "--set", f"data_root={folder}/data"]
        command = ["run", "--expid", expid, "--output", str(folder / "checkpoints"), *options]
        assert main(command) == 0
        (run,) = (folder / "checkpoints" / "demo" / expid).iterdir()
        run.rename(run.with_name(time or run.name))
    return folder


def runs(folder: Path, dataset: str) -> list[Path]:
    found = folder.glob(f"checkpoints/{dataset}/*/*/run.json")
    return [file.parent for file in sorted(found, key=lambda file: file.stat().st_mtime)]


RUN_NAMES = ("RUN", "RUN_A"), ("BASE_RUN", "RUN_B", "TONIGHT"), ("SCRATCH",)


class Page:
    """A page's blocks, carried out in a folder; RUN and BASE_RUN are runs on one data set."""

    def __init__(self, folder: Path, dataset: str) -> None:
        self.folder = folder
        self.dataset = dataset
        self.named: dict[str, str] = {}

    def run(self, language: str, content: str) -> None:
        if language == "yaml":
            self.write_file(content)
        elif language == "python":
            self.write_file(content) or exec(compile(content, "docs", "exec"), {})
        else:
            for line in content.replace("\\\n", " ").splitlines():
                for command in line.split("&&"):
                    self.command(command.strip())

    def write_file(self, content: str) -> bool:
        """Write a block whose first line is the name of a file."""
        name = re.match(r"# ([\w./]+\.(?:py|yaml))\n", content)
        if name:
            path = self.folder / name[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        return bool(name)

    def command(self, command: str) -> None:
        words = shlex.split(command, comments=True)
        if not words or words[0] in ("pip", "export") or "pytest" in words:
            return
        for names, run in zip(RUN_NAMES, runs(self.folder, self.dataset), strict=False):
            for name in names:
                self.named.setdefault(name, str(run))
        words = [self.named.get(word, word) for word in words]
        if words[0] == "fuxictr" or words[:3] == ["python", "-m", "fuxictr_tf4ctr"]:
            status = main(words[1:] if words[0] == "fuxictr" else words[3:])
            # The one command whose page says that it ends so.
            assert status == (2 if "--resume" in words else 0), command
        else:
            programs = {
                "python": sys.executable,
                "torchrun": f"{sys.executable} -m torch.distributed.run",
            }
            words[0] = programs.get(words[0], words[0])
            subprocess.run(" ".join(words), shell=True, cwd=self.folder, check=True)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """The folder in which a page's reader sits, as in a clone of the project."""
    import model_zoo
    from fuxictr_tf4ctr import registry
    from fuxictr_tf4ctr.twin import ENCODERS

    monkeypatch.setattr(model_zoo, "__path__", list(model_zoo.__path__))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    level = logging.getLogger().level
    copy_demo(tmp_path)
    write_frappe(tmp_path)
    with patch.dict(registry.MODELS), patch.dict(ENCODERS):
        yield tmp_path
    logging.getLogger().setLevel(level)


def carry_out(page: Path, folder: Path, dataset: str = "*") -> None:
    carried_out = Page(folder, dataset)
    for language, content in blocks(page):
        carried_out.run(language, content)


@pytest.mark.parametrize("page", BEGINNINGS[1:], ids=lambda page: page.name)
def test_commands_of_a_first_page(page, reader):
    write_own_data(reader)
    if page.name == "nightly.md":  # halves the rows by their number
        copy_demo(reader, training_rows=None)
    carry_out(page, reader)


def test_commands_of_the_readme(reader):
    write_own_data(reader)
    shutil.copy(reader / "data" / "frappe_x1" / "test.csv", reader / "new.csv")
    carry_out(ROOT / "README.md", reader, "frappe_x1")


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.name in LONG), id=p.name) for p in ABOUT_RUNS],
)
def test_commands_of_a_page_about_runs(page, reader, finished_runs):
    shutil.copytree(finished_runs / "checkpoints", reader / "checkpoints")
    shutil.copytree(finished_runs / "checkpoints", reader / "sweeps")
    write_demo_rows(reader)
    carry_out(page, reader)


def test_every_page_with_commands_is_carried_out():
    assert not [page.name for page in OTHERS if list(blocks(page))]


def test_blocks_are_found():
    assert len(list(blocks(ROOT / "docs" / "cookbook.md"))) > 10
