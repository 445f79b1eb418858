"""Read and write the Arrow tables cached in an index's folder."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from llava.files import atomic_write


def read_table(path: Path, schema: pa.Schema) -> pa.Table | None:
    """Map the table in a file; return None if it is missing, damaged or has other columns."""
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
            table.validate(full=True)
    except (OSError, pa.ArrowException):
        return None
    return table if table.schema == schema else None


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table atomically."""
    with atomic_write(path, binary=True) as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
