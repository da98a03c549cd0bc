"""Records from parquet files, through pyarrow (the extra `data`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from t2cli.errors import CorruptArtifactError, T2Error
from t2cli.tasks.jsonl import MAX_FILE_BYTES, MAX_RECORDS, Record

MAX_UNPACKED = 4 * MAX_FILE_BYTES  # a small file can hold the same value very many times


def read_parquet(path: Path) -> Iterator[Record]:
    """Yield the rows of a parquet file, lists and structs as lists and mappings.

    Raises T2Error without pyarrow, and CorruptArtifactError for a file that is damaged or over a limit.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise T2Error(
            f"{path.name} is a parquet file, and pyarrow, which reads those, is not installed",
            hint='pip install "t2cli[data]", or give the questions as JSONL with --data',
        ) from error
    try:
        with ParquetFile(path) as file:
            metadata = file.metadata
            unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
            if metadata.num_rows > MAX_RECORDS or unpacked > MAX_UNPACKED:
                raise CorruptArtifactError(
                    f"{path.name} has {metadata.num_rows} rows of {unpacked} bytes, more than the {MAX_RECORDS} rows"
                    f" or {MAX_UNPACKED} bytes that are read",
                    hint="take a part of it",
                )
            number = 0
            for batch in file.iter_batches(batch_size=1000):
                for values in batch.to_pylist():
                    number += 1
                    yield Record(f"{path.name}, row {number}", values)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CorruptArtifactError(f"{path} is no parquet file that can be read: {reason:.200}") from error
