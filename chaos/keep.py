"""The evidence of a broken promise: what was in the topics, as files that any reader of Arrow opens."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from pyarrow import feather

from chaos.columns import Answers, Inputs


def keep(folder: Path, inputs: Inputs, *outputs: Answers) -> None:
    """inputs.arrow, predictions.arrow, deadletters.arrow."""
    for columns in (inputs, *outputs):
        found = {name: one for name, one in vars(columns).items() if not isinstance(one, pa.Table)}
        tables = [one for one in vars(columns).values() if isinstance(one, pa.Table)]
        for table in tables:
            found.update(zip(table.column_names, table.columns, strict=True))
        feather.write_feather(pa.table(found), folder / f"{type(columns).__name__.lower()}.arrow")
