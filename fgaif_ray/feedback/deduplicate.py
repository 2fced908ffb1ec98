"""Deduplication: before a stage is published, responses that repeated attempts have left twice are removed.

A block may be done twice: Ray repeats a task whose worker died, and a job that was killed is started again. The second
time another call may fail, so the same response can be among the labelled rows of one attempt and the rejected ones of
another. A label that was found is kept, whichever attempt came first.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fgaif_ray import storage
from fgaif_ray.feedback.pending import IDENTITY, digests


def deduplicate(folders: Sequence[str]) -> int:
    """Keep every identity once: in the first folder that has it, there in the first part by name.

    Parts are rewritten whole, so an interruption leaves nothing that running it again does not remove.

    Args:
        folders: stage folders whose rows have a ``sample_id``, the ones to prefer first.

    Returns:
        The rows that were removed.
    """
    parts = [part for folder in folders for part in storage.list_parts(folder)]
    found = [digests(_identities(part)) for part in parts]
    if not found:
        return 0
    values, counts = np.unique(np.concatenate(found), return_counts=True)
    repeated = values[counts > 1]
    if not len(repeated):
        return 0
    seen: set[bytes] = set()
    removed = 0
    for part, identities in zip(parts, found, strict=True):
        keep = np.ones(len(identities), dtype=bool)
        for place in np.flatnonzero(np.isin(identities, repeated)):
            identity = identities[place].tobytes()
            keep[place] = identity not in seen
            seen.add(identity)
        if not keep.all():
            _keep_rows(part, keep)
            removed += int((~keep).sum())
    return removed


def _identities(part: str) -> list[str]:
    with storage.open_part(part) as parquet:
        identities: list[str] = parquet.read(columns=[IDENTITY]).column(IDENTITY).to_pylist()
    return identities


def _keep_rows(part: str, keep: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> None:
    if not keep.any():
        storage.remove_file(part)
        return
    with storage.open_part(part) as parquet:
        table = parquet.read().filter(pa.array(keep))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(part, sink.getvalue().to_pybytes())
