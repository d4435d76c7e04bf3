"""What a run has read, in a few bytes: a resumed run compares it with what its checkpoint had read."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence

from sktune.backbone.weights import weights_digest
from sktune.data import RawSplits, Row
from sktune.data.files import local_folder
from sktune.errors import UserError
from sktune.model.identity import digest, digest_of_each
from sktune.sections import DataSection
from sktune.tracking.record import DatasetEntry
from sktune.training.setup import Setup

logger = logging.getLogger(__name__)

WITHOUT_MEANING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Of a model's configuration: a folder may be copied, and read with another version."""


_REFUSED = {
    "labels": "the labels, in names or order,",
    "model": "the model's configuration",
    "weights": "the model's weights, under the same name,",
}


def fingerprint(setup: Setup, train: Sequence[Row] | None, validation: Sequence[Row] | None) -> dict[str, str]:
    """Digests of the labels, of the model's configuration and weights, and of both splits' tokens and labels."""
    config = setup.model.backbone.config.to_dict()
    shape = {key: value for key, value in config.items() if key not in WITHOUT_MEANING}
    return {
        "labels": digest(setup.labels),
        "model": digest(shape),
        "weights": weights_digest(setup.recipe.model),
        "train": _digest_of_rows(train or ()),
        "validation": _digest_of_rows(validation or ()),
    }


def datasets(data: DataSection, raw: RawSplits) -> list[DatasetEntry]:
    """The splits of a run as MLflow keeps them: where each is from, and a digest of its examples."""
    folder = local_folder(data)
    found: list[DatasetEntry] = []
    for split, context in (("train", "training"), ("validation", "validation"), ("test", "test")):
        examples, named = getattr(raw, split), getattr(data, split)
        if examples is None:
            continue
        read = digest_of_each((one.text, one.text_pair, one.words, one.reference) for one in examples)
        if folder is None:
            source_type = "hugging_face"
            source = {"path": data.path, "config_name": data.name, "split": named, "revision": data.revision}
        else:
            source_type, source = "local", {"uri": str(folder.absolute() / named)}
        name = f"{data.path}/{named}" if data.name is None else f"{data.path}/{data.name}/{named}"
        found.append(DatasetEntry(name[-500:], read, context, source_type, json.dumps(source), len(examples)))
    return found


def compare(before: Mapping[str, str], now: Mapping[str, str], checkpoint: str) -> None:
    """Holds what a resumed run reads against what its checkpoint had read; warns of other data.

    Raises:
        UserError: for other labels or another model, which the weights of the checkpoint do not belong to.
    """
    changed = {name for name, digest in before.items() if now[name] != digest}
    for name, field in _REFUSED.items():
        if name in changed:
            raise UserError(
                f"training.resume: {checkpoint} was trained with something else: {field} changed since. Give what the "
                "run began with, or begin anew in another output.dir"
            )
    for split in ("train", "validation"):
        if split in changed:
            consequence = (
                "the order of the data is another from here on"
                if split == "train"
                else "the best step so far was chosen by the old one, and stays until a better score"
            )
            logger.warning(
                "data.%s: the texts, their labels or their tokens are not those that %s had read; %s",
                split, checkpoint, consequence,
            )  # fmt: skip


def _digest_of_rows(rows: Sequence[Row]) -> str:
    return digest_of_each((row.input_ids, row.labels) for row in rows)
