"""The data room: recipe -> raw splits -> encoded splits -> batches."""

from sktune.data.batches import GlobalBatches, divide, evaluation_batches
from sktune.data.collate import Collator
from sktune.data.encode import encode_split
from sktune.data.examples import EncodedSplit, Example, RawSplits, Row
from sktune.data.load import load_splits

__all__ = [
    "Collator",
    "EncodedSplit",
    "Example",
    "GlobalBatches",
    "RawSplits",
    "Row",
    "divide",
    "encode_split",
    "evaluation_batches",
    "load_splits",
]
