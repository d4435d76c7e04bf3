"""From examples to rows: one encoding per kind of task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from sktune.data.encode_causal import encode_causal
from sktune.data.encode_words import encode_words
from sktune.data.examples import ABSENT, EncodedSplit, Example, Row
from sktune.data.prompt_template import PromptTemplate
from sktune.data.tokenization import check_tokenizer, tokenize
from sktune.sections import DataSection

if TYPE_CHECKING:
    from sktune.tasks.config import TaskConfig


def encode_split(
    examples: Sequence[Example],
    task: TaskConfig,
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str] | None,
    *,
    add_special_tokens: bool,
    split: str,
    score_candidates: bool = False,
    is_encoder: bool | None = None,
) -> EncodedSplit:
    """Tokenize a split and attach its labels.

    Texts are cut to `data.max_length` tokens. An encoder reads a pair as two segments with its special tokens
    and segment ids; a decoder reads it through `data.pair_template`, and every model reads a single text through
    `data.text_template`; what a template says behind the last text is never cut. Words are joined by spaces and
    tokenized as running text; their tags are put on `task.labelled_piece`. For causal_lm see
    `sktune.data.encode_causal.encode_causal`.

    Args:
        examples: a split of `load_splits`.
        task: what is predicted.
        data: lengths, columns and templates.
        tokenizer: a fast tokenizer.
        labels: the label set, or None for regression and free text.
        add_special_tokens: False where the method brings them with its prompt (a decoder reading after it).
        split: name of the split, for the report.
        score_candidates: causal_lm with label words: one row for every label of every example.
        is_encoder: whether the model reads both ways; None takes it from the tokenizer: it adds special
            tokens
            and has a separator.

    Raises:
        ValueError: for a slow tokenizer, a maximum length that special tokens fill, or a wrong template.
    """
    if is_encoder is None:
        is_encoder = add_special_tokens and tokenizer.sep_token_id is not None
    two_segments = is_encoder and data.text_pair_column is not None and task.name != "causal_lm"
    check_tokenizer(tokenizer, data.max_length, add_special_tokens, two_segments)
    if task.name == "token_classification":
        return encode_words(
            examples, task, data, tokenizer, labels or (),
            add_special_tokens=add_special_tokens, split=split, is_encoder=is_encoder,
        )  # fmt: skip

    template = PromptTemplate.of(data)
    if not two_segments:
        template.check(tokenizer, data.max_length, add_special_tokens)
    if task.name == "causal_lm":
        return encode_causal(
            examples, template, task, data, tokenizer, labels,
            add_special_tokens=add_special_tokens, split=split, score_candidates=score_candidates,
        )  # fmt: skip
    return _encode_texts(
        examples, None if two_segments else template, data, tokenizer, labels,
        add_special_tokens=add_special_tokens, split=split, is_encoder=is_encoder,
    )  # fmt: skip


def _encode_texts(
    examples: Sequence[Example],
    template: PromptTemplate | None,
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str] | None,
    *,
    add_special_tokens: bool,
    split: str,
    is_encoder: bool,
) -> EncodedSplit:
    """Rows of texts; of pairs as two segments where there is no template."""
    label_ids = None if labels is None else {label: i for i, label in enumerate(labels)}
    if template is None:
        texts = [example.text for example in examples]
        pairs: list[str] | None = [example.text_pair or "" for example in examples]
    else:
        texts, pairs = [template.fill(example) for example in examples], None
    options: dict[str, Any] = {
        "max_length": data.max_length, "add_special_tokens": add_special_tokens, "token_type_ids": is_encoder,
    }  # fmt: skip
    tokenized = tokenize(tokenizer, texts, pairs, **options)
    rows: list[Row] = []
    truncated = 0
    for index, (example, tokens) in enumerate(zip(examples, tokenized, strict=True)):
        truncated += tokens.truncated
        if tokens.truncated and template is not None and template.has_tail:
            shorter = template.shorten(example, tokenizer, data.max_length, add_special_tokens)
            (tokens,) = tokenize(tokenizer, [shorter], None, **options)
        gold = example.reference
        assert not isinstance(gold, tuple)
        rows.append(
            Row(
                index=index,
                input_ids=tokens.input_ids,
                token_type_ids=tokens.token_type_ids,
                labels=float(gold) if label_ids is None else label_ids.get(str(gold), ABSENT),
                reference=gold,
                group=index,
            )
        )
    report = _text_report(split, truncated, examples, data.max_length)
    return EncodedSplit(rows, report)


def _text_report(split: str, truncated: int, examples: Sequence[Example], max_length: int) -> list[str]:
    report = []
    if truncated:
        report.append(f"{split}: {truncated} of {len(examples)} inputs truncated to {max_length} tokens")
    if empty := sum(example.is_empty for example in examples):
        report.append(f"{split}: {empty} of {len(examples)} texts are empty")
    return report
