"""What a feature column may say: everything FuxiCTR evaluates is refused unless it is plain."""

import pytest
from fuxictr.pytorch import layers  # noqa: F401  what the accepted texts are evaluated with
from torch import nn

from fuxictr_tf4ctr.datasets import check_dtype, check_feature_encoder
from fuxictr_tf4ctr.datasets.feature_specs import complete_columns
from fuxictr_tf4ctr.errors import SettingsError

LABEL = {"name": "click", "dtype": "float"}


@pytest.mark.parametrize("value", ["str", "int", "float", "list", str, int, float])
def test_known_dtypes_pass(value):
    check_dtype(value)


@pytest.mark.parametrize("value", ["string", "object", "exit()", "__import__('os')", None, dict, 3])
def test_other_dtypes_are_refused(value):
    with pytest.raises(SettingsError, match=r"column 'a': dtype .* must be one of str, int"):
        check_dtype(value, "column 'a'")


@pytest.mark.parametrize(
    "value",
    [
        "layers.MaskedAveragePooling()",
        "nn.Linear(64, 32, bias=False)",
        ["layers.MaskedSumPooling()", "nn.LayerNorm([4], eps=-1e-5)"],
    ],
)
def test_layer_calls_pass(value):
    check_feature_encoder(value)
    for text in value if isinstance(value, list) else [value]:
        assert isinstance(eval(text), nn.Module)


def test_no_encoder_passes():
    check_feature_encoder(None)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "none",
        "layers.MaskedAveragePooling",
        "MaskedAveragePooling()",
        "layers.NoSuchPooling()",
        "layers.torch.load('x')",
        "nn.init.normal_(3)",
        "nn.functional()",
        "torch.load('x')",
        "os.system('true')",
        "nn.Linear(int('4'), 2)",
        "nn.Linear(*[4, 2])",
        "nn.Linear(**{'a': 1})",
        "nn.Linear(4, open('x'))",
        "nn.Linear(4, 2).share_memory()",
        "nn.Linear(4, 2), exit()",
        "[nn.Linear(4, 2)]",
        "nn.Linear(4,",
        "nn.Linear(4)\x00",
        "(" * 500,
        3,
        {"nn.Linear(4, 2)": 1},
        ["nn.Linear(4, 2)", "exit()"],
    ],
)
def test_anything_else_is_refused(value):
    with pytest.raises(SettingsError, match=r"column 'a': .* must read layers"):
        check_feature_encoder(value, "column 'a'")


def test_columns_are_completed_one_by_one():
    given = [{"name": ["a", "b"], "dtype": str, "type": "categorical", "source": "user"}]
    features, labels = complete_columns(given, LABEL)
    expected = {"dtype": "str", "type": "categorical", "source": "user", "active": True}
    assert features == [{"name": name, **expected} for name in ("a", "b")]
    assert labels == [LABEL] and labels[0] is not LABEL
    assert given == [{"name": ["a", "b"], "dtype": str, "type": "categorical", "source": "user"}]


def column(**entries):
    """A valid categorical column with some entries replaced; None leaves one out."""
    merged = {"name": "a", "dtype": "str", "type": "categorical"} | entries
    return {key: value for key, value in merged.items() if value is not None}


NUMERIC = {"type": "numeric", "dtype": "float"}
BAD_COLUMNS = {
    "no name": (column(name=None), "must be a mapping with a name"),
    "number as name": (column(name=7), "7 is no column name"),
    "no dtype": (column(dtype=None), "column 'a': dtype is missing"),
    "bad dtype": (column(dtype="open('x', 'w')"), "column 'a': dtype"),
    "no type": (column(type=None), "column 'a': type is missing"),
    "bad type": (column(type="categoric"), "unknown type 'categoric'; did you mean 'categorical'"),
    "listed twice": (column(name=["a", "a"]), "'a' is listed twice"),
    "label as feature": (column(name="click"), "'click' is listed twice"),
    "text as number": (column(type="numeric"), "'a': its dtype must be int or float"),
    "numbers as sequence": (
        column(type="sequence", dtype="int"),
        "'a': type sequence needs dtype str or list, not int",
    ),
    "normalizer": (column(**NUMERIC, normalizer="MinMax"), "unknown normalizer 'MinMax'"),
    "no width": (column(type="embedding", dtype="list"), "needs pretrain_dim"),
    "buckets": (column(category_processor="hash"), "unknown category_processor 'hash'"),
    "text buckets": (column(category_processor="quantile_bucket"), "dtype must be int or float"),
    "one bucket": (
        column(category_processor="hash_bucket", num_buckets=1),
        "num_buckets=1 must be a whole number",
    ),
    "bucket table": (
        column(category_processor="hash_bucket", pretrained_emb="x.h5"),
        "buckets have no vocabulary, so no pretrained_emb",
    ),
    "splitter": (column(type="sequence", splitter=""), "splitter='' must be a text"),
    "remap": (column(remap=False), "remap: False for type meta only"),
    "padding": (column(type="sequence", padding="left"), "padding='left' must be one of pre, post"),
    "max_len": (column(type="sequence", max_len="5"), "max_len='5' must be a whole number"),
    "min count": (column(min_categr_count=0), "min_categr_count=0 must be a whole number >= 1"),
    "sharing": (column(share_embedding="b"), "share_embedding 'b' must name an active"),
    "pretrained": (column(pretrained_emb="x.txt"), "pretrained_emb 'x.txt' must be one of"),
    "encoder": (column(feature_encoder="exit()"), "'a': feature_encoder: 'exit"),
    "no encoder": (column(feature_encoder="none"), "only type sequence can go without"),
    "misspelt embedding_dim": (column(embeding_dim=8), "did you mean 'embedding_dim'"),
    "misspelt min_categr_count": (column(min_catgr_count=2), "did you mean 'min_categr_count'"),
    "misspelt splitter": (column(type="sequence", spliter=" "), "did you mean 'splitter'"),
    "misspelt max_len": (column(type="sequence", maxlen=3), "did you mean 'max_len'"),
    "normalizer's class": (column(**NUMERIC, normalizer="Standard"), "mean 'StandardScaler'"),
    "wide": (column(embedding_dim=10**8), "embedding_dim=100000000 must be a whole number from"),
    "names": (column(name=[{"a": 1}]), "is no column name"),
    "unhashable type": (column(type=["numeric"]), "unknown type"),
    "switch": (column(active="yes"), "active='yes' must be true or false"),
    "an entry of many": (
        column(name=["a", "b", "c", "d"], maxlen=3),
        "^columns 'a', 'b', 'c' and 1 more: unknown key 'maxlen'[^\n]*$",
    ),
}


@pytest.mark.parametrize(("bad", "message"), BAD_COLUMNS.values(), ids=BAD_COLUMNS)
def test_columns_fuxictr_cannot_encode_are_named(bad, message):
    with pytest.raises(SettingsError, match=message):
        complete_columns([bad], LABEL)


@pytest.mark.parametrize("given", [None, [], {}, "a", ["a"]])
def test_feature_cols_is_a_list_of_columns(given):
    with pytest.raises(SettingsError, match="feature_cols"):
        complete_columns(given, LABEL)


def test_the_label_is_a_number():
    with pytest.raises(SettingsError, match="'click': its dtype must be int or float"):
        complete_columns([column()], {"name": "click", "dtype": "str"})
    with pytest.raises(SettingsError, match="label_col"):
        complete_columns([column()], None)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(SettingsError) as error:
        complete_columns([column(max_len=-1, padding="left"), column(name="b", dtype="x")], None)
    assert len(str(error.value).splitlines()) == 4


def test_earlier_names_of_fuxictr_are_understood():
    old = {"na_value": 0, "encoder": "MaskedSumPooling", "type": "sequence"}
    (column_,), _ = complete_columns([column(**old)], LABEL)
    assert column_["fill_na"] == 0
    assert column_["feature_encoder"] == "layers.MaskedSumPooling()"
    with pytest.raises(SettingsError, match="must read layers"):
        complete_columns([column(**old | {"encoder": "exit"})], LABEL)


def test_a_processor_of_the_users_own_may_read_further_keys():
    complete_columns([column(my_option=3)], LABEL, "my_package.processor")
    with pytest.raises(SettingsError, match="unknown key 'my_option'"):
        complete_columns([column(my_option=3)], LABEL, "fuxictr.datasets.criteo")


def test_a_sequence_may_say_none_for_no_encoder():
    features, _ = complete_columns([column(type="sequence", feature_encoder="none")], LABEL)
    assert features[0]["feature_encoder"] == "none"


def test_null_is_no_normalizer_no_dim_of_a_columns_own_and_no_table_of_others():
    dims = ("embedding_dim", "emb_output_dim")
    nulls = dict.fromkeys(("normalizer", *dims, "share_embedding", "pretrained_emb"))
    (found,), _ = complete_columns([column() | nulls], {"name": "y", "dtype": "float"})
    assert not nulls.keys() & found.keys()
