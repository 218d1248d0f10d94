"""A model card in Hugging Face's form: front matter that its hub reads, and a page for people."""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from fuxictr_tf4ctr.analysis.results import as_markdown
from fuxictr_tf4ctr.runs.loading import LoadedRun
from fuxictr_tf4ctr.runs.records import plain
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
    splits = {split: getattr(record, split) for split in ("valid", "test")}
    splits = {split: metrics for split, metrics in splits.items() if metrics}
    names = dict.fromkeys(name for metrics in splits.values() for name in metrics)
    results = [
        {"metric": name, **{split: metrics.get(name) for split, metrics in splits.items()}}
        for name in names
    ]
    rows = [{"split": name, "rows": f"{rows:,}"} for name, rows in record.data["rows"].items()]
    features = [
        {
            "feature": f"`{name}`",
            "type": spec["type"],
            "values": f"{spec['vocab_size']:,}" if "vocab_size" in spec else "",
        }
        for name, spec in run.feature_map.features.items()
        if spec["type"] != "meta"
    ]
    front = yaml.safe_dump(_front_matter(run, splits), sort_keys=False, allow_unicode=True)
    kept = {k: v for k, v in sorted(params.items()) if k not in _LEFT_OUT and v is not None}
    settings = json.loads(json.dumps(kept, default=plain))
    script = f"python score.py new.csv{' --preprocessed' if exported.computed else ''} > scores.csv"
    return f"""---
{front}---

# {record.expid}

{params["model"]}, a model of click-through rates with {record.parameters:,} parameters, trained on
`{params["dataset_id"]}` by [FuxiCTR](https://github.com/reczoo/FuxiCTR) and fuxictr-tf4ctr, and
exported for scoring.

## Results

Metrics of the best weights, as the run measured them in float32.

{as_markdown(results)}
The exported model scored {exported.rows:,} rows beside the run's; two probabilities differ by
{exported.difference:.2g} at most. {_rounding(exported)}

## Data

{as_markdown(rows)}
Fingerprint of the rows and of how they were encoded: `{record.data["fingerprint"]}`.

{as_markdown(features)}
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
    rows = [
        {"metric": name, "float32 tables": before[name], f"{exported.tables} tables": after[name]}
        for name in before
    ]
    return f"Its embedding tables are rounded to {exported.tables}:\n\n{as_markdown(rows).rstrip()}"


def _front_matter(run: LoadedRun, splits: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    record, params = run.record, run.settings.params
    results = []
    for split in list(splits)[-1:]:
        dataset = {"name": params["dataset_id"], "type": params["dataset_id"], "split": split}
        metrics = [
            {"type": _HUB_METRICS.get(name, name), "name": name, "value": value}
            for name, value in splits[split].items()
        ]
        results.append({"task": _TASK, "dataset": dataset, "metrics": metrics})
    return {
        "library_name": "fuxictr",
        "pipeline_tag": _TASK["type"],
        "tags": ["ctr-prediction", "recommendation", params["model"]],
        "model-index": [{"name": record.expid, "results": results}],
    }
