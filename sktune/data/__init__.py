"""The data room: recipe -> raw splits -> encoded splits -> batches."""

from sktune.data.batches import GlobalBatches, divide, evaluation_batches
from sktune.data.coder import Coder
from sktune.data.collate import Collator
from sktune.data.examples import EncodedSplit, Example, RawSplits, Reading, Row
from sktune.data.load import load_splits

__all__ = [
    "Coder",
    "Collator",
    "EncodedSplit",
    "Example",
    "GlobalBatches",
    "RawSplits",
    "Reading",
    "Row",
    "divide",
    "evaluation_batches",
    "load_splits",
]
