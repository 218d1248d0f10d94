"""Every command and every Python block of the guides is run, page by page, in its order.

A block may be left out by a comment before it that says why: ``<!-- not run: … -->``. What stands
for a run's folder in a page, RUN and BASE_RUN, is the first run and the one after it.
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

import pytest

from fuxictr_tf4ctr.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs" / "quickstart.md", ROOT / "docs" / "cookbook.md"]
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


def runs(folder: Path) -> list[Path]:
    found = folder.glob("checkpoints/*/*/*/run.json")
    return [file.parent for file in sorted(found, key=lambda file: file.stat().st_mtime)]


class Page:
    """A page's blocks, carried out in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        if not words or words[0] in ("pip", "export"):
            return
        for name, run in zip(("RUN", "BASE_RUN"), runs(self.folder), strict=False):
            self.named.setdefault(name, str(run))
        words = [self.named.get(word, word) for word in words]
        if words[0] == "fuxictr" or words[:3] == ["python", "-m", "fuxictr_tf4ctr"]:
            status = main(words[1:] if words[0] == "fuxictr" else words[3:])
            # The one command whose page says that it ends so.
            assert status == (2 if "--resume" in words else 0), command
        else:
            words[0] = sys.executable if words[0] == "python" else words[0]
            subprocess.run(" ".join(words), shell=True, cwd=self.folder, check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page(page, tmp_path, monkeypatch):
    from fuxictr_tf4ctr import registry

    monkeypatch.setattr(registry.MODELS, "_classes", dict(registry.MODELS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    level = logging.getLogger().level
    write_own_data(tmp_path)
    shutil.copytree(ROOT / "data" / "demo", tmp_path / "data" / "demo")  # as in a clone
    carried_out = Page(tmp_path)
    for language, content in blocks(page):
        carried_out.run(language, content)
    logging.getLogger().setLevel(level)


def test_blocks_are_found():
    assert len(list(blocks(ROOT / "docs" / "cookbook.md"))) > 10
