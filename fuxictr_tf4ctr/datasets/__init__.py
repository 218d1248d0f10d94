"""From raw csv or parquet files to batches: encode once, train from HDF5."""

from fuxictr_tf4ctr.datasets.encode import EncodedDataset, encode_dataset, find_encoded
from fuxictr_tf4ctr.datasets.feature_map import load_feature_map
from fuxictr_tf4ctr.datasets.feature_specs import check_dtype, check_feature_encoder
from fuxictr_tf4ctr.datasets.inspecting import decode_rows, describe_dataset
from fuxictr_tf4ctr.datasets.loader import H5DataLoader
from fuxictr_tf4ctr.datasets.stored import H5Writer, read_columns

__all__ = [
    "EncodedDataset",
    "H5DataLoader",
    "H5Writer",
    "check_dtype",
    "check_feature_encoder",
    "decode_rows",
    "describe_dataset",
    "encode_dataset",
    "find_encoded",
    "load_feature_map",
    "read_columns",
]
