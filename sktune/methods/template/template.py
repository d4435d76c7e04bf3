"""A template and its label words, as a tokenizer and a model read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from sktune.data.examples import Example
from sktune.errors import UserError
from sktune.methods.template.config import (
    ANSWER,
    DEFAULT_PAIR_TEMPLATE,
    DEFAULT_TEMPLATE,
    Piece,
    TemplateConfig,
    parse_template,
)


class Filled(NamedTuple):
    """A filled template; the answer is `text[start:end]`."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Template:
    """Text with slots.

    words: label -> what is put into the answer's slot, in the order of the labels.
    tokens: of each label, the token that is scored.
    report: what a user should know.
    """

    pieces: tuple[Piece, ...]
    words: Mapping[str, str]
    tokens: tuple[int, ...]
    report: tuple[str, ...]

    def fill(self, text: str, text_pair: str | None, answer: str) -> Filled:
        """The template with its slots filled; what the texts hold is left as it is, braces too."""
        return _fill(self.pieces, {"text": text, "text_pair": text_pair or "", ANSWER: answer})

    def answered(self, example: Example) -> str:
        """An example with its answer, as a demonstration shows it."""
        return self.fill(example.text, example.text_pair, self.words[str(example.reference)]).text


def read_template(
    method: TemplateConfig,
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    pair: bool,
    is_encoder: bool,
) -> Template:
    """The template and the label words of a method, for a tokenizer.

    A label word is tokenized where it stands, in the filled template, so that a space before it belongs to it or not
    as the tokenizer has it. Of a word of several tokens the first is scored.

    Args:
        method: the recipe's section.
        labels: the label set, in order.
        tokenizer: a fast one.
        pair: whether there is a second text.
        is_encoder: whether a mask token is put into the slot; else the answer is what follows the text.

    Raises:
        UserError: for a decoder's template that goes on behind the answer; a tokenizer without a mask token; labels
            without a word, words without a label, words that are unknown, melt into what stands before them, or
            share their first token.
    """
    source = method.template or (DEFAULT_PAIR_TEMPLATE if pair else DEFAULT_TEMPLATE)
    pieces = parse_template(source, pair)
    example = _fill(pieces, dict.fromkeys(("text", "text_pair", ANSWER), "x"))
    if not is_encoder and example.text[example.end :].strip():
        raise UserError(
            f"method.template: {source!r} goes on behind {{answer}}, and a decoder has not read what comes later; end "
            "it with {answer}"
        )
    if is_encoder and tokenizer.mask_token_id is None:
        raise UserError(f"model.tokenizer: {_name(tokenizer)} has no mask token to stand for the answer")
    words = _words(method, labels)
    pieces_of = {label: _tokens_of_word(pieces, label, word, tokenizer) for label, word in words.items()}
    tokens = tuple(pieces_of[label][0] for label in labels)
    _refuse_shared_tokens(words, dict(zip(labels, tokens, strict=True)), tokenizer)
    report = [f"template: {source!r}" + ("" if method.template else " (the default)")]
    report.append("label words: " + ", ".join(f"{label}: {words[label]!r}" for label in labels))
    if longer := [label for label in labels if len(pieces_of[label]) > 1]:
        shown = (f"{words[label]!r} by {tokenizer.convert_ids_to_tokens(pieces_of[label][0])!r}" for label in longer)
        report.append(f"of label words with several tokens the first is scored: {', '.join(shown)}")
    return Template(pieces, words, tokens, tuple(report))


def _fill(pieces: Sequence[Piece], slots: Mapping[str, str]) -> Filled:
    text, start, end = "", 0, 0
    for literal, slot in pieces:
        text += literal
        if slot is not None:
            if slot == ANSWER:
                start, end = len(text), len(text) + len(slots[slot])
            text += slots[slot]
    return Filled(text, start, end)


def _words(method: TemplateConfig, labels: Sequence[str]) -> dict[str, str]:
    if method.label_words is None:
        return {label: label for label in labels}
    for problem, names in (
        ("has no word for", [label for label in labels if label not in method.label_words]),
        ("names labels that the data does not have:", [label for label in method.label_words if label not in labels]),
    ):
        if names:
            raise UserError(f"method.label_words: {problem} {', '.join(names)}; the labels are {', '.join(labels)}")
    return {label: method.label_words[label].strip() for label in labels}


def _tokens_of_word(pieces: Sequence[Piece], label: str, word: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    filled = _fill(pieces, {"text": "x", "text_pair": "x", ANSWER: word})
    before = len(filled.text[: filled.start].rstrip(" "))  # a space belongs to the word behind it
    encoded = tokenizer(filled.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    found = [
        (int(token), start)
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        if end > before and start < filled.end
    ]
    if not found or found[0][0] == tokenizer.unk_token_id:
        raise UserError(
            f"method.label_words: {word!r} (of {label}) is unknown to {_name(tokenizer)}; choose another word"
        )
    if found[0][1] < before:
        raise UserError(
            f"method.label_words: {word!r} (of {label}) melts into what stands before it in the template; put a space "
            "before {answer}"
        )
    return [token for token, _ in found]


def _refuse_shared_tokens(
    words: Mapping[str, str], first: Mapping[str, int], tokenizer: PreTrainedTokenizerBase
) -> None:
    of_token: dict[int, str] = {}
    for label, token in first.items():
        if token in of_token:
            raise UserError(
                f"method.label_words: {words[of_token[token]]!r} (of {of_token[token]}) and {words[label]!r} (of "
                f"{label}) begin with the same token {tokenizer.convert_ids_to_tokens(token)!r}, and the first token "
                "is what is scored; choose words that differ in it"
            )
        of_token[token] = label


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.name_or_path or type(tokenizer).__name__)
