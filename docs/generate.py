"""Write the reference pages that follow from the code: ``python docs/generate.py``.

``configuration.md`` comes from the table of configuration keys, ``zoo.md`` from the registry,
``cli.md`` from the parser of the command line. A test fails when one no longer fits the code.
"""

import argparse
import inspect
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.cli import build_parser
from fuxictr_tf4ctr.registry import MODELS, list_models
from fuxictr_tf4ctr.schema import REQUIRED, Key
from fuxictr_tf4ctr.settings.keys import DATASET_KEYS, FAST_KEYS, TRAINING_KEYS
from fuxictr_tf4ctr.twin import ENCODERS, FUSIONS, SAMPLE_SELECTIONS, TwinModel
from fuxictr_tf4ctr.twin.encoders.base import encoder_options

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

Each entry of `feature_cols` has `name` (one or a list), `active`, `dtype` (`str`, `int`, `float`)
and `type` (`categorical`, `numeric`, `sequence`, `embedding`, `meta`), and may have FuxiCTR's
options: `preprocess`, `fill_na`, `min_categr_count`, `normalizer`, `splitter`, `max_len`,
`padding`, `feature_encoder`, `embedding_dim`, `share_embedding`, `pretrained_emb`, ….

## Training

{_key_table(TRAINING_KEYS)}

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
"""


def zoo() -> str:
    """Return the page of twins and encoders in Markdown."""
    twins = [MODELS[e.name] for e in list_models().values() if e.source == "twin"]
    return f"""# Zoo

Written by `docs/generate.py` from the registry; do not edit.

## Twins

Each has a baseline of the base model's name: the same encoders without sample selection and Twin
Focus Loss, with the fusion that makes it the published model.

| twin | base model | simple encoder | complex encoder | paper of the base model |
|---|---|---|---|---|
{chr(10).join(_twin_row(cls) for cls in twins if issubclass(cls, TwinModel))}

`TF4CTR_Pair` twins any two complete FuxiCTR models by name: see
[its README](../model_zoo/TF4CTR_Pair/README.md).

## Encoders

Every encoder can be the simple or the complex one of any twin. Options are given as
`simple_<option>` or `complex_<option>`.

| encoder | what it is | options (defaults) |
|---|---|---|
{chr(10).join(_encoder_row(name) for name in sorted(ENCODERS))}
"""


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


def _choices(table: Any) -> str:
    return ", ".join(f"`{name}`" for name in table)


def _twin_row(cls: type[TwinModel]) -> str:
    simple, complex_ = cls.defaults["simple_encoder"], cls.defaults["complex_encoder"]
    return f"| `{cls.__name__}` | {cls.base_model} | `{simple}` | `{complex_}` | {cls.paper} |"


def _encoder_row(name: str) -> str:
    cls = ENCODERS[name]
    options = ", ".join(
        f"`{option}` ({_plain(parameter.default)})"
        for option, parameter in encoder_options(cls).items()
    )
    return f"| `{name}` | {inspect.getdoc(cls).splitlines()[0]} | {options} |"


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
