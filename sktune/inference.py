"""Using a trained adapter: scores of a split, and answers to new texts."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from sktune.data import Row
from sktune.distributed.ranks import Ranks
from sktune.errors import UserError
from sktune.files import EVALUATION_FOLDER, write_whole
from sktune.model.adapter import adapter_folder, read_adapter, read_recipe
from sktune.model.tuned_model import put_weights
from sktune.progress import progress
from sktune.recipe import LoadedRecipe
from sktune.tasks.task import Answers
from sktune.training.evaluate import evaluate, model_inputs
from sktune.training.output import kept_folder
from sktune.training.report import write_predictions
from sktune.training.setup import Setup, build_engine, prepare

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


def load_trained(
    output: Path, ranks: Ranks, overrides: Sequence[str] = (), scored: str | None = None
) -> tuple[LoadedRecipe, Setup]:
    """Rebuilds a trained model from its output folder; overrides change the recipe it was trained with.

    `scored` names the split to read; None reads no data that is to be answered.
    """
    folder = adapter_folder(output)
    loaded = read_recipe(folder, overrides, reads_data=scored is not None)
    weights, labels = read_adapter(folder)
    setup = prepare(loaded.recipe, ranks, labels=labels, read_data=False, scored=scored)
    put_weights(setup.model, weights, str(folder))
    return loaded, setup


def evaluate_run(output: Path, split: str, ranks: Ranks, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Scores a trained adapter on a split of its data; writes `evaluation/<split>.json` and the predictions.

    The folder is kept to this command meanwhile.

    Returns:
        The metrics, and `per_type` for token classification.

    Raises:
        UserError: for an unknown split, one that the recipe does not name, or a folder in use.
    """
    if split not in SPLITS:
        raise UserError(f"--split: {split!r} is unknown; allowed: {', '.join(SPLITS)}")
    adapter_folder(output)
    with kept_folder(output, ranks):
        return _evaluate_run(output, split, ranks, overrides)


def _evaluate_run(output: Path, split: str, ranks: Ranks, overrides: Sequence[str]) -> dict[str, Any]:
    _, setup = load_trained(output, ranks, overrides, scored=split)
    assert setup.raw is not None
    rows = setup.encode_for_scoring(getattr(setup.raw, split), split)
    assert rows is not None
    engine, _ = build_engine(setup, ranks)
    scores = evaluate(setup, engine, rows, ranks)
    result: dict[str, Any] = dict(scores.metrics)
    if scores.per_type:
        result["per_type"] = scores.per_type
    if ranks.is_main:
        write_predictions(scores, getattr(setup.raw, split), output / EVALUATION_FOLDER / f"{split}.predictions.jsonl")
        write_whole(output / EVALUATION_FOLDER / f"{split}.json", json.dumps(result, indent=1))
    ranks.barrier()
    return result


class Answer(dict[str, Any]):
    """An answer, JSON-ready; `line` says the same in words, for a terminal."""

    def __init__(self, line: str, **entries: Any) -> None:
        super().__init__(entries)
        self.line = line


def predict(
    output: Path,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    ranks: Ranks,
    overrides: Sequence[str] = (),
    blanks: bool = False,
) -> Iterator[Answer]:
    """Answers for new texts, in order, in the words of the training data.

    Args:
        output: the run's folder.
        texts: for token classification, words separated by spaces.
        pairs: second texts, for tasks on pairs.
        ranks: this process, alone.
        overrides: changes of the recipe.
        blanks: whether a text without words is answered too where words are tagged, so that every line of a file is.

    Yields:
        `text` with what its task shows: `words`, `tags` and `entities`; `label` and `probabilities`; `value`;
        `generated` ...

    Raises:
        UserError: for a missing or superfluous second text, a text without words, and where the output folder holds no
            adapter.
    """
    loaded, setup = load_trained(output, ranks, overrides)
    recipe, task = loaded.recipe, setup.task
    wants_pairs = recipe.data.text_pair_column is not None
    if wants_pairs != (pairs is not None) or (pairs is not None and len(pairs) != len(texts)):
        need = "one --text-pair for each --text" if wants_pairs else "no --text-pair"
        raise UserError(
            f"--text-pair: this adapter was trained on {'pairs' if wants_pairs else 'single texts'}; give {need}"
        )
    setup.model.to(ranks.device).eval()
    # Answers that are printed on the terminal show by themselves how far it is.
    shown = not sys.stdout.isatty()
    with torch.no_grad(), progress("predicting", len(texts), "texts", shown=shown) as advance:
        for number, text in enumerate(texts):
            example = task.example(text, pairs[number] if pairs else None)
            if task.reads_words and not example.words and not blanks:
                raise UserError(f"--text: {text!r} has no words")
            encoded = setup.encode([example], f"text {number + 1}", scoring=True)
            for line in encoded.report:
                logger.warning(line)
            rows = list(encoded.rows)
            if length := task.config.new_tokens:
                prompt = [t for t, label in zip(rows[0].input_ids, rows[0].labels, strict=True) if label < 0]  # type: ignore[arg-type]
                found: dict[str, Any] = {"generated": generate(setup, prompt, length)}
            else:
                found = task.shown(example, rows, _answers(setup, rows), setup.labels)
            yield Answer(f"{text}\n  -> {task.line(found)}", text=text, **found)
            advance(1)


def _answers(setup: Setup, rows: list[Row]) -> Answers:
    batch = setup.collator(rows)
    device = next(setup.model.parameters()).device
    output = setup.model(**model_inputs(batch, device))
    return setup.task.answers(output, rows, batch["attention_mask"].argmax(1).tolist(), setup.labels)


@torch.no_grad()
def generate(setup: Setup, prompt: Sequence[int], max_new_tokens: int) -> str:
    """Greedy continuation of a prompt by the tuned language model, up to its end token or `max_new_tokens`."""
    model, tokenizer = setup.model, setup.tokenizer
    device = next(model.parameters()).device
    ids, produced = list(prompt), []
    woven = model.method(model.backbone)
    for _ in range(max_new_tokens):
        embeds = model.backbone.embed(torch.tensor([ids], device=device))
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=device)
        last = torch.tensor([len(ids) - 1], device=device)
        logits = model.backbone.read(embeds, mask, woven, with_lm_head=True, keep_positions=last)
        token = int(logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
        produced.append(token)
    return str(tokenizer.decode(produced, skip_special_tokens=True)).strip()
