"""Twins of the zoo, small enough that tests of all of them stay fast."""

import torch
from helpers import ALL_KINDS, make_feature_map

import model_zoo
from fuxictr_tf4ctr.twin import ENCODERS
from fuxictr_tf4ctr.twin.encoders.base import encoder_options

# Small sizes for whatever encoder takes an option of that name.
SMALL = {
    "hidden_units": [6, 4],
    "num_layers": 2,
    "attention_dim": 4,
    "logarithmic_neurons": 3,
    "num_blocks": 2,
    "block_dim": 4,
    "attention_hidden_units": [3],
    "gate_hidden_units": [3],
    "low_rank": 2,
}


def small_options(model_class, **params):
    """Sizes that keep a test fast, for the encoders these parameters name."""
    named = model_class.with_defaults(params)
    options = {"embedding_dim": 4, **params}
    for role in ("simple", "complex"):
        known = encoder_options(ENCODERS[named[f"{role}_encoder"]])
        for option, value in SMALL.items():
            if option in known:
                options.setdefault(f"{role}_{option}", value)
    return options


def build(name, **params):
    """Build a twin of the zoo on one feature of every kind."""
    torch.manual_seed(0)
    model_class = getattr(model_zoo, name)
    return model_class(make_feature_map(ALL_KINDS), **small_options(model_class, **params))
