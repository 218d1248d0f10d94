"""Write the reference pages that follow from the code: ``python docs/generate.py``.

``configuration.md`` comes from the table of configuration keys, ``zoo.md`` from the registry,
``cli.md`` from the parser of the command line. A test fails when one no longer fits the code.
"""

import argparse
import inspect
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from fuxictr.features import FeatureMap

from fuxictr_tf4ctr.cli import build_parser
from fuxictr_tf4ctr.datasets.feature_specs import COLUMN_KEYS, DTYPES, TYPES
from fuxictr_tf4ctr.registry import find_model, find_twins
from fuxictr_tf4ctr.schema import REQUIRED, Key
from fuxictr_tf4ctr.settings.keys import DATASET_KEYS, FAST_KEYS, IGNORED, TRAINING_KEYS
from fuxictr_tf4ctr.settings.resolver import class_section
from fuxictr_tf4ctr.twin import ENCODERS, FUSIONS, SAMPLE_SELECTIONS, TwinModel
from fuxictr_tf4ctr.twin.encoders.base import encoder_options

_FRAPPE = {
    "user": 942, "item": 4084, "daytime": 9, "weekday": 9, "isweekend": 4, "homework": 5, "cost": 4,
    "weather": 11, "country": 82, "city": 233,
}  # fmt: skip
_OPTIONS = [key for key in COLUMN_KEYS if key not in ("name", "dtype", "type")]
DOCS = Path(__file__).resolve().parent


def configuration() -> str:
    """Return the configuration reference in Markdown."""
    return f"""# Configuration

Written by `docs/generate.py` from the code; do not edit.

An experiment is a section of `model_config.yaml` (or of a file in `model_config/`), a data set a
section of `dataset_config.yaml` (or of a file in `dataset_config/`). The section `Base` holds for
every experiment of the folder. A model section may list others in `inherits`; they are merged in
order and its own keys win. The data set's section wins over the model's, `--set key=value` over
both.

Experiments of twins need no section: `TF4CTR_DCNv2_mine` is the twin on the data set `mine`,
`DCNv2_mine` its base model. What follows from the twin's class is merged over a section `mine` of
the model configuration (with `dataset_id` and what the data set asks of any model), or stands with
the bare `dataset_id: mine`. In such a section, `encoder_options` holds options for the twins whose
encoders have them. A section `TF4CTR_DCNv2_mine` without `model` and `inherits` adds what differs.

## Data set

{_key_table(DATASET_KEYS)}

A relative path is looked for beside the folder of the configuration, then in the working directory,
then in `$FUXICTR_DATA`; `data_root` is taken from where the data set lies encoded already, else it
is made in the working directory. A file's suffix may be left out. Parquet files without
`feature_cols` are encoded ones, as npz and h5: their `feature_map.json` is in
`data_root/dataset_id`.

{_columns()}

## Training

{_key_table(TRAINING_KEYS)}

`feature_config`, an earlier name, is read as `feature_specs`, `patience` as `early_stop_patience`.

## Keys of FuxiCTR without effect here

A run says once which of these it was given.

| key | what it means to FuxiCTR, and what is here instead |
|---|---|
{_ignored_rows()}

A key that a model of FuxiCTR does not take is an error where a key it takes is spelt nearly so, and
else told in a warning. What its models once called a key is read as its present name, where the
model has that: `crossing_layers` as `num_cross_layers`, `cin_layer_units` as `cin_hidden_units`,
`hidden_units` as `dnn_hidden_units` and the reverse. Groups of columns, FuxiCTR's
`!!python/tuple [a, b]`, may be written as plain lists.

## What FuxiCTR and BARS have published

Folders of experiments and tuner files as they are, given to `fuxictr tune --config`, by
`benchmarks/corpus.py`. What is refused names its fault: most often a function of FuxiCTR's own
processor for the data set, which is to be set as `feature_processor`.

| corpus | there | load | refused, by reason |
|---|---|---|---|
{_corpus_rows()}

## Fast mode

Switches that may change results; [performance.md](performance.md) says by how much, and what each
gains. `null` leaves a switch to `fast`.

{_key_table(FAST_KEYS)}

## Twins

| key | default | meaning |
|---|---|---|
| `sample_selection` | `SER` | {_choices(SAMPLE_SELECTIONS)} |
| `fusion` | `WSF` | {_choices(FUSIONS)} |
| `simple_encoder`, `complex_encoder` | the twin's | name of an encoder, see [zoo.md](zoo.md) |
| `simple_<option>`, `complex_<option>` | the encoder's | option of that encoder |
| `net_dropout`, `batch_norm`, `hidden_activations` | `0`, `false`, `relu` | for both encoders; \
the first two also for gates and experts of the sample selection |
| `embedding_dim` | `16` | dim D; SER's simple encoder takes D/2 |
| `twin_focus` | `true` | add the Twin Focus Loss |
| `c`, `gamma`, `alpha` | `0.8`, `1`, `0.25` | its parameters: c and alpha in [0, 1], gamma >= 0 |
| `simple_head` | the twin's | `false` takes a simple encoder of width 1 as a logit |
| `linear_logit` | the twin's | add a bias-free logistic regression to the final logit |
| `base_loss` | `false` | keep the base model's own loss beside the Twin Focus Loss: \
{", ".join(cls.base_model for cls in _twins() if cls.has_base_loss)} |
"""


def _twins() -> list[type[TwinModel]]:
    return [cls for cls in find_twins().values() if issubclass(cls, TwinModel)]


def zoo() -> str:
    """Return the page of twins and encoders in Markdown."""
    twins = _twins()
    return f"""# Zoo

Written by `docs/generate.py` from the classes in `model_zoo/`; do not edit.

## Twins

A twin on a data set is the expid `TF4CTR_<Base>_<dataset>`, its base model `<Base>_<dataset>`: the
same encoders without sample selection and Twin Focus Loss, with what makes it the published model.
Golden tests hold base models that FuxiCTR has to its parameters, predictions, losses and gradients;
FCN, DIN, EulerNet, PNN and QNN, of which no vectors are recorded, are held to their formulas.
Weights are counted on Frappe's ten fields with its vocabularies, at `embedding_dim` 16.

| twin | base model | simple encoder | complex encoder | weights: twin | base model |
|---|---|---|---|---|---|
{chr(10).join(_twin_row(cls) for cls in twins)}

¹ beside the ten fields a sequence that shares the item's table

{chr(10).join(_twin_section(cls) for cls in find_twins().values())}
## Encoders

Every encoder can be the simple or the complex one of any twin. Options are given as
`simple_<option>` or `complex_<option>`; in brackets their defaults.

{chr(10).join(_encoder_section(name) for name in sorted(ENCODERS))}"""


def command_line() -> str:
    """Return the reference of the command line in Markdown."""
    parser = build_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return f"""# Command line

Written by `docs/generate.py` from the parser; do not edit.

`fuxictr COMMAND --help` shows the same. `fuxictr-tf4ctr` and `python -m fuxictr_tf4ctr` are the
same program. {parser.epilog}

{chr(10).join(_command(name, command) for name, command in commands.choices.items())}"""


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    rows = [_argument_row(action) for action in parser._actions if action.dest != "help"]
    table = "\n".join(["| argument | meaning |", "|---|---|", *rows])
    return f"## fuxictr {name}\n\n{parser.description}\n\n{table}\n"


def _argument_row(action: argparse.Action) -> str:
    value = _value(action)
    names = [f"{option}{value}" for option in action.option_strings] or [value.strip()]
    meaning = [action.help]
    if action.choices:
        meaning.append("; one of " + ", ".join(f"`{choice}`" for choice in action.choices))
    if action.required and action.option_strings:
        meaning.append("; required")
    written = ", ".join(f"`{name}`" for name in names)
    return f"| {written} | {_escaped(''.join(filter(None, meaning)).lstrip('; '))} |"


def _value(action: argparse.Action) -> str:
    """Write what is given after an option, as the usage line does."""
    if action.nargs == 0:
        return ""
    name = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    if isinstance(action.nargs, int):
        return f" {name}" * action.nargs
    return {"?": f" [{name}]", "+": f" {name} …"}.get(action.nargs, f" {name}")


def _escaped(text: str) -> str:
    """Keep a text in one cell of a table, its patterns from becoming emphasis."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "\\<")


def _key_table(keys: dict[str, Key]) -> str:
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for name, key in keys.items():
        default = "required" if key.default is REQUIRED else f"`{_plain(key.default)}`"
        rows.append(f"| `{name}` | {default} | {key.help} |")
    return "\n".join(rows)


def _columns() -> str:
    return textwrap.fill(
        "Each entry of `feature_cols` has `name` (one or a list), "
        f"`dtype` ({_choices(DTYPES)}) and `type` ({_choices(TYPES)}), and may have "
        f"{_choices(_OPTIONS)}. `na_value` and `encoder`, "
        "FuxiCTR's earlier names of `fill_na` and `feature_encoder`, are understood. A "
        "`feature_processor` of your own may read further keys of a column; "
        "`fuxictr.datasets.avazu`, `.criteo` and `.kkbox` are FuxiCTR's.",
        width=100,
    )


def _corpus_rows() -> str:
    table = json.loads((DOCS.parent / "benchmarks/results/corpus.json").read_text("utf-8"))
    return "\n".join(
        f"| {name} | {counts['there']} | {counts['loaded']} | "
        + "; ".join(f"{count}: {reason}" for reason, count in counts["reasons"].items())
        + " |"
        for name, counts in table.items()
    )


def _ignored_rows() -> str:
    return "\n".join(f"| `{name}` | {reason} |" for name, reason in IGNORED.items())


def _choices(table: Any) -> str:
    return ", ".join(f"`{name}`" for name in table)


def _twin_row(cls: type[TwinModel]) -> str:
    simple, complex_ = cls.defaults["simple_encoder"], cls.defaults["complex_encoder"]
    counts = [_weights(class_section(cls, baseline)) for baseline in (False, True)]
    note = "¹" if _needs_sequence(cls) else ""
    return (
        f"| [`{cls.__name__}`](#{cls.__name__.lower()}){note} | {cls.base_model} | `{simple}` | "
        f"`{complex_}` | {counts[0]:,} | {counts[1]:,} |"
    )


def _twin_section(cls: type[TwinModel]) -> str:
    page = inspect.getdoc(cls).split("\n", 1)
    paper = re.sub(r"arXiv (\S+)", r"[arXiv \1](https://arxiv.org/abs/\1)", cls.paper)
    own = {"sample_selection": "none", "twin_focus": False} | dict(cls.baseline)
    own = own if issubclass(cls, TwinModel) else {"twin_focus": False} | dict(cls.baseline)
    off = ", ".join(f"`{key}: {_plain(value)}`" for key, value in own.items())
    page[0] = page[0].split(": ", 1)[1]
    body = re.sub(r"``(.*?)``", r"`\1`", "\n".join(page), flags=re.S)
    body = body[0].upper() + body[1:]
    return f"### {cls.__name__}\n\n{body}\n\nPaper: {paper}. Base model {cls.base_model}: {off}.\n"


def _needs_sequence(cls: type[TwinModel]) -> bool:
    return bool(cls.column_problems({"item": {"type": "categorical"}}, cls.with_defaults({})))


def _weights(section: dict[str, Any]) -> int:
    """Count the weights of a twin on Frappe's fields."""
    params = dict(section)
    cls = find_model(params.pop("model"))
    feature_map = FeatureMap("frappe_x1", "")
    for name, size in _FRAPPE.items():
        spec = {"source": "", "type": "categorical", "padding_idx": 0, "vocab_size": size}
        feature_map.features[name] = spec
    if _needs_sequence(cls):
        feature_map.features["history"] = feature_map.features["item"] | {
            "type": "sequence",
            "max_len": 10,
            "share_embedding": "item",
            "feature_encoder": "layers.MaskedAveragePooling()",
        }
    feature_map.labels = ["label"]
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.set_column_index()
    model = cls(feature_map, embedding_dim=16, **params)
    return sum(weight.numel() for weight in model.parameters())


def _encoder_section(name: str) -> str:
    cls = ENCODERS[name]
    pages = [inspect.getdoc(each) or "" for each in reversed(cls.__mro__)]
    argument = re.compile(r"^    (\w+): (.*?)(?=^    \w|^\S|\Z)", re.S | re.M)
    meanings = dict(pair for page in pages for pair in argument.findall(page))
    rows = [
        f"* `{option}` ({_plain(parameter.default)}): {' '.join(meanings[option].split())}"
        for option, parameter in encoder_options(cls).items()
    ]
    head = f"### {name}\n\n{pages[-1].splitlines()[0]}\n"
    return "\n".join([head, *rows, ""] if rows else [head])


def _plain(value: Any) -> str:
    """Write a value as YAML does."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value) if isinstance(value, tuple) else value)


PAGES = {"configuration.md": configuration, "zoo.md": zoo, "cli.md": command_line}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write(), encoding="utf-8")
