"""What a plan has to assume where the recipe leaves it to the data, and the words that say so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from sktune.backbone import load_tokenizer
from sktune.embedded import is_embedded
from sktune.methods.template.config import DEFAULT_PAIR_TEMPLATE, DEFAULT_TEMPLATE, TemplateConfig, parse_template
from sktune.planning.model_configs import is_local
from sktune.recipe.recipe import Recipe

LABELS = {"token_classification": 9, "sequence_classification": 2, "pair_classification": 3, "regression": 1}
"""Labels of a task whose recipe does not list them: CoNLL's tags, two classes, NLI's three."""
PIECES_PER_WORD = 1.5


class CountedTokenizer:
    """Stands for a tokenizer that is not at hand: it knows how many tokens a text may have, and no more."""

    cls_token_id = None
    eos_token_id = None
    all_special_ids = (0,)

    def __len__(self) -> int:
        return 32_000  # methods only ask for some token that is not special

    def __call__(
        self, text: str, add_special_tokens: bool = True, return_offsets_mapping: bool = False
    ) -> dict[str, list[Any]]:
        """A BOS, and `PIECES_PER_WORD` tokens for each word and punctuation mark, rounded up."""
        words = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
        count = int(-(-len(words) * PIECES_PER_WORD // 1))
        spans = [(0, 0)] * add_special_tokens + [words[int(i / PIECES_PER_WORD)] for i in range(count)]
        return {"input_ids": [0] * len(spans), "offset_mapping": spans}


def tokenizer_of(recipe: Recipe) -> tuple[Any, str | None]:
    """The recipe's tokenizer where it is on this machine, else one that counts words; and what was assumed.

    Raises:
        ValueError: where a local folder has a tokenizer that is not usable.
    """
    name = recipe.model.tokenizer or recipe.model.name_or_path
    gguf = Path(name).is_file() or any(Path(name).glob("*.gguf"))  # has one in its header
    if is_local(name) and (is_embedded(name) or gguf or any(Path(name).glob("*token*"))):
        return load_tokenizer(recipe.model), None
    try:
        if is_local(name):
            raise ValueError("a folder with a config.json alone")
        found = AutoTokenizer.from_pretrained(
            name,
            revision=recipe.model.revision,
            local_files_only=True,
            trust_remote_code=recipe.model.trust_remote_code,
        )
        return found, None
    except Exception:
        counted = CountedTokenizer()
        text = getattr(recipe.method, "text", None)
        if text is None:
            return counted, None
        tokens = len(counted(text)["input_ids"])
        return counted, (
            f"method.text is {tokens} tokens long: {PIECES_PER_WORD} for each of its words, since the tokenizer of "
            f"{name} is not on this machine"
        )


def labels_of(recipe: Recipe) -> tuple[int, str | None]:
    """Number of labels, and what was assumed."""
    task = recipe.task
    words = getattr(recipe.method, "label_words", None)
    if task.labels is None and words is not None:
        return len(words), None
    if task.labels is not None:
        return len(task.labels), None
    if task.name in ("causal_lm", "regression"):
        return 1, None
    return LABELS[task.name], f"the data has {LABELS[task.name]} labels (the recipe does not list them)"


def length_of(recipe: Recipe, tokenizer: Any, labels: int) -> tuple[int, str | None]:
    """Tokens of the longest row, and what was assumed: with a template, all texts and demonstrations at their longest.

    The text is `data.max_length` tokens long; a prompt that a method puts in front of it is not counted.
    """
    method, text = recipe.method, recipe.data.max_length
    if not isinstance(method, TemplateConfig):
        return text, None
    pair = recipe.data.text_pair_column is not None
    template = method.template or (DEFAULT_PAIR_TEMPLATE if pair else DEFAULT_TEMPLATE)
    literals = "".join(literal for literal, _ in parse_template(template, pair))
    fixed = 1 + len(tokenizer(literals)["input_ids"])  # the answer too
    shown = method.demonstrations * labels
    note = f"rows are {text} tokens in a template of {fixed}" + (
        f" behind {shown} demonstrations as long, up to the model's positions" if shown else ""
    )
    return (1 + shown) * (fixed + text), note if shown else None
