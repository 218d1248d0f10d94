"""Documentation tells the truth: pages are current, examples run, links lead somewhere."""

import importlib.util
import re
import shlex
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from helpers import make_feature_map, random_batch
from programs import run_program

from fuxictr_tf4ctr.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "data" / "README.md",
]


def section(page: str, name: str) -> str:
    """The fenced block between <!-- name:begin --> and <!-- name:end -->."""
    text = (ROOT / page).read_text()
    pattern = rf"<!-- {name}:begin -->\n```\w+\n(.*?)```\n<!-- {name}:end -->"
    return re.search(pattern, text, re.S)[1]


def test_generated_pages_are_current():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for page, content in generate.PAGES.items():
        written = (ROOT / "docs" / page).read_text()
        assert written == content(), f"{page} is out of date: run python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def commands(page: Path) -> list[list[str]]:
    """The fuxictr commands in the shell examples of a page, without the program's name."""
    shell = "\n".join(re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.S | re.M))
    lines = [part for line in shell.replace("\\\n", " ").splitlines() for part in line.split("&&")]
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in split if words[:1] == ["fuxictr"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_ones_the_program_takes(page):
    parser = build_parser()
    for words in commands(page):
        assert parser.parse_args(words).call, words


def test_commands_are_found():
    assert ["run", "--expid", "TF4CTR_DCNv2_demo"] in commands(ROOT / "README.md")


def test_a_twin_is_a_file_of_twenty_lines():
    """tests/test_docs_commands.py writes it and runs the commands of the page."""
    page = (ROOT / "docs/writing_a_twin.md").read_text()
    source = re.search(r"```python\n# model_zoo/TF4CTR_CrossFM.py\n(.*?)```", page, re.S)[1]
    assert len(source.splitlines()) <= 20 and "```yaml" not in page


def test_the_encoder_of_the_guide_works_in_any_twin():
    import model_zoo
    from fuxictr_tf4ctr.twin import ENCODERS

    feature_map = make_feature_map()
    with patch.dict(ENCODERS):
        scope = {"__name__": "guide"}
        exec(compile(section("docs/writing_a_twin.md", "encoder"), "guide", "exec"), scope)
        model = model_zoo.TF4CTR_DCN(
            feature_map, simple_encoder="max_pooling", simple_output_dim=16, embedding_dim=4
        )
    assert model(random_batch(feature_map))["y_pred"].shape == (6, 1)


def test_the_readmes_three_lines_work():
    """The example of the README, its gaps filled by a two-stream model of FuxiCTR's layers."""
    from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel

    text = (ROOT / "README.md").read_text()
    pattern = r"```python\n(from fuxictr_tf4ctr import TwinFocusLoss.*?)```"
    example = re.search(pattern, text, re.S)[1]
    build = """super().__init__(feature_map, verbose=0, model_root="", metrics=["AUC"], **params)
        self.embedding = FeatureEmbedding(feature_map, 4)
        self.left, self.right = (MLP_Block(12, [6], output_dim=1) for _ in range(2))"""
    forward = """e = self.embedding(self.get_inputs(inputs), flatten_emb=True)
        z_s, z_c = self.left(e), self.right(e)
        y_pred = torch.sigmoid(z_s + z_c)"""
    source = example.replace("...", build, 1).replace("...", forward, 1)
    scope = {
        "__name__": "readme", "BaseModel": BaseModel, "torch": torch,
        "FeatureEmbedding": FeatureEmbedding, "MLP_Block": MLP_Block,
    }  # fmt: skip
    exec(compile(source, "README.md", "exec"), scope)
    feature_map = make_feature_map()
    model = scope["MyModel"](feature_map)
    model.compile("adam", "binary_crossentropy", 1e-2)
    model._max_gradient_norm = 10.0
    batch = random_batch(feature_map)
    losses = [model.train_step(batch).item() for _ in range(20)]
    assert losses[-1] < losses[0]
    outputs, y = model(batch), model.get_labels(batch)
    plain = BaseModel.add_loss(model, outputs, y)
    twin = model.twin_focus(outputs["logit_simple"], outputs["logit_complex"], y)
    torch.testing.assert_close(model.add_loss(outputs, y), plain + twin)


def test_ci_runs_the_readmes_test_command():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci/run").read_text()
    command = re.search(r"## Run the tests\n\n```bash\n(.*?)\n```", readme)[1]
    install, test = command.split(" && ")
    steps = [
        install.replace("install", "install --quiet"),
        f'{test} -m "not slow"',
        f"{test} -m slow",
    ]
    assert [line for line in ci.splitlines() if line in steps] == steps


def test_no_machine_paths_in_the_documentation():
    for page in PAGES:
        assert not re.search(r"/(work|root|home)/|/tmp/\w+/", page.read_text()), page.name


def test_the_site_builds_without_warnings(tmp_path):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="the site is built with the extra docs")
    built = run_program("-m", "sphinx", "-W", "-q", ROOT / "docs", tmp_path, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "cookbook.html").is_file()
