"""One label for two texts."""

from __future__ import annotations

from sktune.data import Reading
from sktune.data.table import Table
from sktune.errors import UserError
from sktune.sections import DataSection
from sktune.tasks.classes import ClassTask


class PairClassification(ClassTask):
    """One label for two texts."""

    def read(self, table: Table, data: DataSection, split: str) -> Reading:
        if data.text_pair_column is None:
            raise UserError("data.text_pair_column: pair_classification reads two texts; name the second's column.")
        return super().read(table, data, split)
