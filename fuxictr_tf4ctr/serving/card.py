"""A model card in Hugging Face's form: front matter that its hub reads, and a page for people."""

from collections.abc import Mapping
from typing import Any

import yaml

from fuxictr_tf4ctr.runs.loading import LoadedRun
from fuxictr_tf4ctr.runs.records import RunRecord
from fuxictr_tf4ctr.serving.export import Artefact
from fuxictr_tf4ctr.settings.keys import DATASET_KEYS

# Of this machine, or told elsewhere on the card.
_LEFT_OUT = {"gpu", "verbose", "model_root", "metrics", "trackers", "tensorboard"}
_LEFT_OUT |= DATASET_KEYS.keys() - {"min_categr_count", "weight_col"}
# Names under which the hub compares models.
_HUB_METRICS = {"AUC": "roc_auc", "logloss": "log_loss", "binary_crossentropy": "log_loss"}
_TASK = {"type": "tabular-classification", "name": "Click-through rate prediction"}


def model_card(run: LoadedRun, exported: Artefact) -> str:
    """Return the README.md of an export, in Markdown.

    Args:
        run: The run that was exported.
        exported: What was exported of it.

    Source:
        https://huggingface.co/docs/hub/model-cards, its front matter with ``model-index``.
    """
    record, params = run.record, run.settings.params
    rows = record.data["rows"]
    front = yaml.safe_dump(_front_matter(run), sort_keys=False, allow_unicode=True)
    settings = {
        key: _plain(value)
        for key, value in sorted(params.items())
        if key not in _LEFT_OUT and value is not None
    }
    script = f"python score.py new.csv{' --preprocessed' if exported.computed else ''} > scores.csv"
    return f"""---
{front}---

# {record.expid}

{params["model"]}, a model of click-through rates with {record.parameters:,} parameters, trained on
`{params["dataset_id"]}` by [FuxiCTR](https://github.com/reczoo/FuxiCTR) and fuxictr-tf4ctr, and
exported for scoring.

## Results

Metrics of the best weights, as the run measured them in float32.

{_table(["metric", *_splits(record)], _metric_rows(record))}

The exported model scored {exported.rows:,} rows beside the run's; two probabilities differ by
{exported.difference:.2g} at most. {_rounding(exported)}

## Data

{_table(["split", "rows"], [[split, f"{count:,}"] for split, count in rows.items()])}

Fingerprint of the rows and of how they were encoded: `{record.data["fingerprint"]}`.

{_table(["feature", "type", "values"], _feature_rows(run))}

## Scoring

`score.py` takes raw csv rows with these columns; it needs numpy, and the runtime of the model's
file.

```bash
{script}
```

## Settings

```yaml
{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip()}
```

Trained {record.started[:10]} with {", ".join(f"{k} {v}" for k, v in record.versions.items())}.
"""


def _rounding(exported: Artefact) -> str:
    """Say what the rounding of tables does to the metrics, if they are rounded."""
    if not exported.metrics:
        return "Its embedding tables are float32."
    before, after = exported.metrics["fp32"], exported.metrics["rounded"]
    rows = [[name, f"{before[name]:.6f}", f"{after[name]:.6f}"] for name in before]
    header = ["metric", "float32 tables", f"{exported.tables} tables"]
    return f"Its embedding tables are rounded to {exported.tables}:\n\n{_table(header, rows)}"


def _front_matter(run: LoadedRun) -> dict[str, Any]:
    record, params = run.record, run.settings.params
    results = []
    for split in _splits(record)[-1:]:
        dataset = {"name": params["dataset_id"], "type": params["dataset_id"], "split": split}
        metrics = [
            {"type": _HUB_METRICS.get(name, name), "name": name, "value": value}
            for name, value in getattr(record, split).items()
        ]
        results.append({"task": _TASK, "dataset": dataset, "metrics": metrics})
    return {
        "library_name": "fuxictr",
        "pipeline_tag": _TASK["type"],
        "tags": ["ctr-prediction", "recommendation", params["model"]],
        "model-index": [{"name": record.expid, "results": results}],
    }


def _splits(record: RunRecord) -> list[str]:
    return [split for split in ("valid", "test") if getattr(record, split)]


def _metric_rows(record: RunRecord) -> list[list[str]]:
    splits = [getattr(record, split) for split in _splits(record)]
    names = dict.fromkeys(name for split in splits for name in split)
    return [
        [name, *(f"{split[name]:.6f}" if name in split else "" for split in splits)]
        for name in names
    ]


def _feature_rows(run: LoadedRun) -> list[list[str]]:
    features = run.feature_map.features.items()
    return [
        [f"`{name}`", spec["type"], f"{spec['vocab_size']:,}" if "vocab_size" in spec else ""]
        for name, spec in features
        if spec["type"] != "meta"
    ]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
