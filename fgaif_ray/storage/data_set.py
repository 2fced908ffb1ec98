"""Parquet files as Hugging Face's datasets read them: the features that stand in a schema's metadata."""

import json
from collections.abc import Collection
from typing import Any, Final

import pyarrow as pa

IMAGE_LIST: Final = pa.list_(pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]))
"""As Hugging Face's datasets keep a list of images."""


def with_features(schema: pa.Schema, images: Collection[str] = ()) -> pa.Schema:
    """The schema with what ``load_dataset`` reads its features from.

    Args:
        schema: of the file.
        images: columns of type ``IMAGE_LIST``, which are opened as images.
    """
    features = {field.name: _feature(field.type) for field in schema}
    features |= {name: {"feature": {"_type": "Image"}, "_type": "List"} for name in images}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _feature(kind: pa.DataType) -> Any:
    """A type in the words of Hugging Face's datasets."""
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    return {"dtype": {"double": "float64", "float": "float32"}.get(str(kind), str(kind)), "_type": "Value"}
