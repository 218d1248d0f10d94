"""Find the base model that has as many parameters as a twin, for an honest comparison.

    FUXICTR_DATA=../shared/data \\
        python benchmarks/equal_parameters.py TF4CTR_DCNv2_frappe DCNv2_frappe

The base model's embedding dim grows by half (what SER adds: a second table of dim D/2), then the
widths of its MLPs are scaled until the parameter counts agree as closely as whole units allow. A
base model without an MLP grows in its embedding dim alone, to the closest there is. What is printed
is a row for a study's YAML file.
"""

import argparse
from typing import Any

import yaml
from fuxictr.features import FeatureMap

from fuxictr_tf4ctr.datasets import encode_dataset, load_feature_map
from fuxictr_tf4ctr.settings.reading import Settings, load_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("twin", help="expid of the twin")
    parser.add_argument("base", help="expid of its base model")
    arguments = parser.parse_args()
    twin, base = load_settings(arguments.twin), load_settings(arguments.base)
    feature_map = load_feature_map(encode_dataset(twin.params), twin.params)
    target = parameters(twin, feature_map)
    row = matched(base, feature_map, target)
    count = parameters(base, feature_map, row)
    print(f"# {arguments.twin}: {target:,}, {arguments.base} widened: {count:,}")
    print(yaml.safe_dump({f"{arguments.base}_equal": {"expid": arguments.base} | row}))


def matched(base: Settings, feature_map: FeatureMap, target: int) -> dict[str, Any]:
    """Return the overrides that bring the base model closest to ``target`` parameters."""
    dim = base["embedding_dim"] * 3 // 2
    units = {
        key: value
        for key, value in base.model_class.complete(base.params).items()
        if key.endswith("_hidden_units") and max(value) >= 100
    }
    if not units:
        dims = range(base["embedding_dim"], 4 * base["embedding_dim"], 2)  # some encoders halve it
        rows = [{"embedding_dim": dim} for dim in dims]
        return min(rows, key=lambda row: abs(parameters(base, feature_map, row) - target))
    low, high = 0.1, 10.0
    for _ in range(40):
        scale = (low + high) / 2
        row = {"embedding_dim": dim} | {
            key: [round(width * scale) for width in widths] for key, widths in units.items()
        }
        if parameters(base, feature_map, row) < target:
            low = scale
        else:
            high = scale
    return row


def parameters(
    settings: Settings, feature_map: FeatureMap, row: dict[str, Any] | None = None
) -> int:
    """Count the trainable parameters of an experiment's model."""
    model = settings.model_class(feature_map, **{**settings.params, **(row or {})})
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


if __name__ == "__main__":
    main()
