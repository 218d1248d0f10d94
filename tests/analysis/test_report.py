"""The page: whole, self-contained, with everything it promises."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from trained_runs import changed_copy

from fuxictr_tf4ctr.analysis.report import make_report
from fuxictr_tf4ctr.cli import main

ROOT = Path(__file__).resolve().parents[2]
_VOID = {"meta", "br"}


class Page(HTMLParser):
    """Reads a page and fails where elements are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.headings, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.fixture(scope="module")
def page(runs):
    text = make_report([runs["gated"], runs["base"], runs["plain"]], resamples=20)
    return text, Page(text)


def test_every_section_and_chart_is_there(page):
    _, read = page
    assert [
        heading
        for heading in read.headings
        if heading
        in {"Side by side", "Learning", "Predictions", "Inside the twin", "Easy and hard samples",
            "Embeddings", "Where this comes from"}
    ].count("Easy and hard samples") == 2  # a section, and a chart inside the twin  # fmt: skip
    for title in (
        "Side by side", "Learning", "Validation AUC", "Training loss", "ROC curve", "Calibration",
        "Scores by label: gated", "Inside the twin", "Focus weights", "Where the loss comes from",
        "Where the encoders disagree", "Who is right when they disagree", "Gate g of GM",
        "Vote p for the simple encoder", "Gate g of GM, by difficulty", "AUC by difficulty",
        "Logloss saved by gated", "Logloss saved by plain", "Length by field: base",
        "Where this comes from",
    ):  # fmt: skip
        assert title in read.headings, title
    figures = page[0].count("<figure")
    assert page[0].count("<figcaption>") == figures > 15
    assert all(caption for caption in re.findall(r"<figcaption>(.*?)</figcaption>", page[0]))


def test_the_page_asks_for_nothing_from_anywhere(page):
    text, read = page
    assert "http" not in re.sub(r"http-equiv", "", text)
    for tag, name, value in read.attributes:
        assert name != "src" and (name != "href" or value.startswith("#")), (tag, value)
    assert not re.search(r"url\(|@import|fetch\(", text)
    assert "default-src 'none'" in text
    assert len(text.encode()) < 1_500_000
    assert not re.search(r"\bnan\b", text, re.I)


def test_links_lead_to_sections(page):
    _, read = page
    ids = [value for _, name, value in read.attributes if name == "id"]
    links = [value[1:] for _, name, value in read.attributes if name == "href"]
    assert len(links) == 7 and set(links) <= set(ids) and len(ids) == len(set(ids))


def test_names_are_escaped(page):
    text, read = page
    assert "<i>tem" not in text and any("<i>tem&" in part for part in read.text)


def test_the_settings_that_differ_from_the_defaults_are_told(page):
    _, read = page
    assert {"sample_selection", "GM", "batch_size", "100"} <= set(read.text)
    assert "optimizer" not in read.text


def test_one_run_without_streams_has_no_twin_and_no_comparison(runs):
    read = Page(make_report([runs["plain"]], resamples=2))
    assert "Predictions" in read.headings
    assert not {"Inside the twin", "Side by side", "AUC by difficulty"} & set(read.headings)


def test_recorded_loss_terms_and_twin_values_are_drawn(runs, tmp_path):
    record = json.loads((runs["twin"] / "run.json").read_text())
    for at, evaluation in enumerate(record["evaluations"]):
        evaluation["losses"] = {"bce": 0.5, "simple": 0.4 - at / 10, "complex": 0.3}
        evaluation["twin"] = {"fusion_weight_simple": 0.5, "fusion_weight_complex": 0.6}
    del record["evaluations"][0]["twin"]  # an evaluation of an earlier version
    run = changed_copy(runs["twin"], tmp_path / "run", evaluations=record["evaluations"])
    read = Page(make_report([run], resamples=2))
    assert {"Loss by term", "Fusion over training"} <= set(read.headings)
    assert "fusion weight simple" in read.text


def test_runs_of_one_experiment_are_told_apart(runs, tmp_path):
    copy = changed_copy(runs["twin"], tmp_path / "again")
    read = Page(make_report([runs["twin"], copy], resamples=2))
    assert "Logloss saved by twin again" not in read.headings
    assert f"Logloss saved by twin {runs['twin'].name}" in read.headings


def test_the_command_writes_the_page(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(runs["twin"]), str(runs["base"]), "--resamples", "5"]) == 0
    assert capsys.readouterr().out.startswith("report.html: ")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    Page((tmp_path / "report.html").read_text("utf-8"))


def test_what_cannot_be_reported_leaves_nothing(runs, tmp_path, capsys):
    page = tmp_path / "page.html"
    stopped = changed_copy(runs["twin"], tmp_path / "stopped", status="failed")
    for arguments, message in (
        ([stopped, "--output", page], "is not finished"),
        ([tmp_path / "nowhere", "--output", page], "no such folder"),
        ([runs["twin"], "--output", tmp_path / "no" / "page.html"], "does not exist"),
        ([runs["twin"], "--output", page, "--resamples", "1"], "2 or more"),
    ):
        assert main(["report", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.html")) and not list(tmp_path.glob(".*.tmp"))
