"""Tagged words to rows: tokenized as running text, tags put on pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sktune.data import Coder, EncodedSplit, Example, Row
from sktune.data.examples import ABSENT
from sktune.data.tokenization import tokenize
from sktune.tasks.token_classification.alignment import join_words, labelled_pieces, words_of_tokens


def encode_words(
    examples: Sequence[Example],
    coder: Coder,
    labels: Sequence[str],
    labelled_piece: Literal["first", "last"],
    split: str,
) -> EncodedSplit:
    """Rows of tagged sentences: each word's tag on its first or last piece, -100 on every other token.

    A word without a piece (its characters are removed by the tokenizer, or it was cut off) gets -1 in
    `word_pieces` and is counted in the report; the gold tags of all words stay in `reference`.
    """
    tokenizer, max_length = coder.tokenizer, coder.data.max_length
    coder.check(False)
    label_ids = {label: i for i, label in enumerate(labels)}
    joined = [join_words(example.words) for example in examples]
    tokenized = tokenize(
        tokenizer, [text for text, _ in joined], None,
        max_length=max_length, add_special_tokens=coder.add_special_tokens, token_type_ids=coder.is_encoder,
    )  # fmt: skip
    rows: list[Row] = []
    truncated = cut = no_piece = 0
    for index, (example, (text, starts), tokens) in enumerate(zip(examples, joined, tokenized, strict=True)):
        kept = words_of_tokens(text, starts, tokens.offsets, tokenizer.convert_ids_to_tokens(tokens.input_ids))
        whole = kept
        if tokens.full is not None:
            truncated += 1
            whole = words_of_tokens(
                text, starts, tokens.full.offsets, tokenizer.convert_ids_to_tokens(tokens.full.input_ids)
            )
        count = len(example.words)
        positions = labelled_pieces(count, kept, whole, labelled_piece, tokenizer.truncation_side)
        lost = positions.count(-1)
        without = count - len({word for word in whole if word >= 0})
        no_piece += without
        cut += lost - without
        token_labels = [ABSENT] * len(tokens.input_ids)
        gold = example.reference
        assert isinstance(gold, tuple)
        for position, tag in zip(positions, gold, strict=True):
            if position >= 0:
                token_labels[position] = label_ids.get(tag, ABSENT)
        rows.append(
            Row(
                index=index,
                input_ids=tokens.input_ids,
                token_type_ids=tokens.token_type_ids,
                labels=token_labels,
                reference=list(gold),
                word_pieces=positions,
                group=index,
            )
        )
    words = sum(len(example.words) for example in examples)
    report = []
    if truncated:
        report.append(
            f"{split}: {truncated} of {len(rows)} inputs truncated to {max_length} tokens; "
            f"{cut} of {words} words lost, predicted O"
        )
    if no_piece:
        report.append(f"{split}: {no_piece} of {words} words have no token of their own, predicted O")
    return EncodedSplit(rows, report)
