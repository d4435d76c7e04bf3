"""Scoring a trained adapter on data that it was not trained with."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sktune.data import RawSplits, load_for_evaluation
from sktune.distributed.ranks import Ranks
from sktune.errors import UserError
from sktune.files import EVALUATION_FOLDER
from sktune.inference import load_trained, score
from sktune.model.adapter import adapter_folder, read_adapter, read_recipe
from sktune.recipe import Recipe
from sktune.tasks.task import build_task
from sktune.training.fingerprint import datasets
from sktune.training.output import kept_folder
from sktune.training.setup import build_engine

logger = logging.getLogger(__name__)

SPLIT = "test"
_ENTITY = re.compile(r"([BI]-)(.+)")


@dataclass(frozen=True)
class DataSet:
    """A file or a split that is scored: where it is, what was read of it, and under which name scores are kept."""

    recipe: Recipe
    raw: RawSplits

    def described(self) -> dict[str, Any]:
        """`data`, `split`, a digest of the examples, and their number."""
        *_, entry = datasets(self.recipe.data, self.raw)
        split = str(self.recipe.data.test)
        return {"data": self.recipe.data.path, "split": split, "digest": entry.digest, "rows": entry.rows}

    @property
    def name(self) -> str:
        """Of its files: what it is called, and the beginning of the digest, so that other data has other files."""
        found = self.described()
        said = re.sub(r"[^\w.-]+", "_", f"{Path(found['data']).name}_{Path(found['split']).stem}")
        return f"{said[:80]}-{found['digest'][:8]}"


def parse_label_map(pairs: Sequence[str]) -> dict[str, str]:
    """`--label-map OLD=NEW`, each once.

    Raises:
        UserError: for anything else.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not equals or not old or not new or found.get(old, new) != new:
            raise UserError(f"--label-map: {pair!r}; write OLD=NEW, a label of the data and the adapter's, each once")
        found[old] = new
    return found


def score_data(
    output: Path,
    data: Sequence[str],
    tests: Sequence[str],
    label_map: Mapping[str, str],
    ranks: Ranks,
    overrides: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Scores of a trained adapter on each of several data sets; the model is loaded once, after all were read.

    Writes `evaluation/<name>.json` and the predictions of each; the scores of the run itself stay.

    Args:
        output: the run's folder.
        data: files, folders, and names of data (`embedded:...`, or of the hub).
        tests: files or splits of folders and names; none: the recipe's `data.test`.
        label_map: label in the data -> the adapter's.
        ranks: this process.
        overrides: changes of the recipe.

    Returns:
        Of each: `data`, `split`, `digest`, `rows`, and the metrics.

    Raises:
        UserError: for data that cannot be read, or of which no label is known, and for a folder in use.
    """
    folder = adapter_folder(output)
    labels = read_adapter(folder)[1]
    rename = _renaming(label_map, labels)
    sets = []
    for path, test in _places(data, tests):
        named = [] if test is None else [f"data.{SPLIT}={json.dumps(test)}"]
        recipe = read_recipe(folder, [*overrides, f"data.path={json.dumps(path)}", *named]).recipe
        if recipe.data.test is None:
            raise UserError(f"--data: {path}: the recipe names no test split; say which with --test FILE_OR_SPLIT")
        raw = load_for_evaluation(recipe.data, build_task(recipe.task), SPLIT, labels, rename)
        sets.append(DataSet(recipe, raw))
    with kept_folder(output, ranks):
        _, setup = load_trained(output, ranks, overrides)
        engine, _ = build_engine(setup, ranks)
        results = []
        for one in sets:
            for line in one.raw.report:
                logger.info(line)
            assert one.raw.test is not None
            place = output / EVALUATION_FOLDER / one.name
            results.append(score(setup, engine, one.raw.test, SPLIT, ranks, place, one.described()))
    return results


def _places(data: Sequence[str], tests: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(path, test file or split) of all that is to be scored; None: the recipe's."""
    for one in data:
        path = Path(one).expanduser()
        if path.is_file():
            if tests:
                raise UserError(f"--test: {one} is a file; --test names files of a folder, or splits")
            yield str(path.parent), path.name
        else:
            yield from ((one, test) for test in tests or (None,))


def _renaming(label_map: Mapping[str, str], labels: Sequence[str] | None) -> Callable[[str], str] | None:
    """What a label of the data is called by the adapter; of a tag also by its type alone.

    Raises:
        UserError: for a label that the adapter does not know.
    """
    if not label_map:
        return None
    if labels is None:
        raise UserError("--label-map: this adapter answers without a set of labels")
    types = {found[2] for label in labels if (found := _ENTITY.fullmatch(label))}
    for old, new in label_map.items():
        if new not in labels and new not in types:
            raise UserError(f"--label-map: {old}={new}: the adapter knows no {new}; allowed: {', '.join(labels)}")

    def rename(label: str) -> str:
        if label in label_map:
            return label_map[label]
        entity = _ENTITY.fullmatch(label)
        return entity[1] + label_map.get(entity[2], entity[2]) if entity else label

    return rename
