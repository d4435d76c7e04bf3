"""Texts to rows through a template: demonstrations, the filled template, and where its answer is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from sktune.data.cutting import cut_texts, token_counts
from sktune.data.examples import ABSENT, EncodedSplit, Example, Row
from sktune.data.tokenization import check_tokenizer, some_token
from sktune.errors import UserError
from sktune.methods.template.config import TemplateConfig
from sktune.methods.template.demonstrations import Demonstrations
from sktune.methods.template.template import Filled, Template, read_template
from sktune.progress import progress
from sktune.sections import DataSection

BREAK = "\n\n"
"""Behind each demonstration, for a decoder; an encoder reads them as one running text."""
_CHUNK = 1000


class _Encoded(NamedTuple):
    input_ids: list[int]
    token_type_ids: list[int] | None
    answer: int


@dataclass(frozen=True)
class TemplateEncoder:
    """Encodes splits for a method with a template.

    A text (of a pair both together) is cut to `max_length` tokens; template, answer slot and demonstrations are not
    counted and never cut. Demonstrations that find no place among the positions of the model are left out, the first
    ones first.

    report: what a user should know of the template, its words and its demonstrations.
    """

    template: Template
    demonstrations: Demonstrations | None
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    is_encoder: bool
    report: tuple[str, ...]

    def encode(self, examples: Sequence[Example], split: str, max_positions: int | None) -> EncodedSplit:
        """Rows with one label each, and in `answer` the position at which the language model answers.

        Args:
            examples: of a split.
            split: its name, for the report.
            max_positions: most tokens the model reads; None: no limit.

        Raises:
            UserError: where template and text together may exceed the model's positions.
        """
        limit = self._room(max_positions)
        ids = {label: i for i, label in enumerate(self.template.words)}
        rows: list[Row] = []
        cut = left_out = crowded = 0
        with progress("tokenizing", len(examples), "texts", shown=len(examples) > _CHUNK) as advance:
            for start in range(0, len(examples), _CHUNK):
                chunk = examples[start : start + _CHUNK]
                shown = [[] for _ in chunk] if self.demonstrations is None else self.demonstrations.of(chunk)
                texts = cut_texts(self.tokenizer, chunk, self.max_length)
                whole = self._encode([self._fill(*pair) for pair in zip(texts, shown, strict=True)])
                for example, text, demonstrations, encoded in zip(chunk, texts, shown, whole, strict=True):
                    if limit is not None and len(encoded.input_ids) > limit:
                        encoded, kept = self._squeeze(text, demonstrations, limit)
                        left_out += len(demonstrations) - kept
                        crowded += kept < len(demonstrations)
                    cut += (text.text, text.text_pair) != (example.text, example.text_pair)
                    gold = str(example.reference)
                    index = len(rows)
                    rows.append(
                        Row(
                            index=index,
                            input_ids=encoded.input_ids,
                            token_type_ids=encoded.token_type_ids,
                            labels=ids.get(gold, ABSENT),
                            reference=gold,
                            group=index,
                            answer=encoded.answer,
                        )
                    )
                advance(len(chunk))
        report = []
        if cut:
            report.append(f"{split}: {cut} of {len(rows)} inputs truncated to {self.max_length} tokens")
        if left_out:
            report.append(
                f"{split}: {left_out} demonstrations left out in {crowded} of {len(rows)} inputs, "
                f"for want of room in the model's {limit} positions"
            )
        if empty := sum(not example.text.strip() for example in examples):
            report.append(f"{split}: {empty} of {len(rows)} texts are empty")
        return EncodedSplit(rows, report)

    def _room(self, max_positions: int | None) -> int | None:
        (empty,) = self._encode([self._fill(Example(0, "", ""), ())])
        fixed = len(empty.input_ids)
        if max_positions is not None and fixed >= max_positions:
            raise UserError(
                f"method.template: {fixed} tokens of its own leave no room for a text in the {max_positions} positions "
                "of the model; shorten it"
            )
        if max_positions is not None and fixed + self.max_length > max_positions:
            raise UserError(
                f"data.max_length: {self.max_length} tokens in a template of {fixed} exceed the {max_positions} "
                f"positions of the model; allowed: up to {max_positions - fixed}"
            )
        return max_positions

    def _squeeze(self, text: Example, demonstrations: Sequence[Example], limit: int) -> tuple[_Encoded, int]:
        """(the row with as many demonstrations as fit, their number)."""
        for first in range(1, len(demonstrations) + 1):
            (encoded,) = self._encode([self._fill(text, demonstrations[first:])])
            if len(encoded.input_ids) <= limit:
                return encoded, len(demonstrations) - first
        # Where a text and its template meet, a token may more come out than they have apart.
        (encoded,) = self._encode([self._fill(text, ())])
        keep = self.max_length
        while len(encoded.input_ids) > limit and keep:
            keep -= 1
            (shorter,) = cut_texts(self.tokenizer, [text], keep)
            (encoded,) = self._encode([self._fill(shorter, ())])
        return encoded, 0

    @property
    def _slot(self) -> str:
        return str(self.tokenizer.mask_token) if self.is_encoder else "x"

    def _fill(self, example: Example, demonstrations: Sequence[Example]) -> Filled:
        end = " " if self.is_encoder else BREAK
        before = "".join(self.template.answered(shown) + end for shown in demonstrations)
        filled = self.template.fill(example.text, example.text_pair, self._slot)
        # The space before the answer belongs to the answer's token, in a mask's place too.
        head = (before + filled.text[: filled.start]).rstrip(" ")
        return Filled(head + filled.text[filled.start :], len(head), len(head) + filled.end - filled.start)

    def _encode(self, filled: Sequence[Filled]) -> list[_Encoded]:
        # A decoder answers behind its last token.
        texts = [one.text if self.is_encoder else one.text[: one.start] for one in filled]
        batch = self.tokenizer(texts, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
        segments = batch.get("token_type_ids") if self.is_encoder else None
        found = []
        for i, (one, ids) in enumerate(zip(filled, batch["input_ids"], strict=True)):
            if self.is_encoder:
                # A text may hold mask tokens of its own: the answer's is the one that ends where the slot does.
                ends = [int(end) for _, end in batch["offset_mapping"][i]]
                mask = self.tokenizer.mask_token_id
                answer = next(
                    k for k, (token, end) in enumerate(zip(ids, ends, strict=True)) if (token, end) == (mask, one.end)
                )
                found.append(_Encoded(list(ids), None if segments is None else list(segments[i]), answer))
            else:
                if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
                    ids = ids[:-1]  # some tokenizers end every text; the answer is still to come
                ids = list(ids) or [some_token(self.tokenizer)]
                found.append(_Encoded(ids, None, len(ids) - 1))
        return found


def template_encoder(
    method: TemplateConfig,
    data: DataSection,
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Example],
    *,
    is_encoder: bool,
    seed: int,
) -> TemplateEncoder:
    """What encodes the splits of a run.

    Args:
        method: template, label words and demonstrations.
        data: lengths and columns.
        labels: the label set, in order.
        tokenizer: a fast one.
        train: the training split, which demonstrations are taken from; of those with a text that would have to be
            cut, none.
        is_encoder: whether the model reads both ways.
        seed: of the run.

    Raises:
        UserError: see `read_template` and `Demonstrations`; and for a slow tokenizer.
    """
    check_tokenizer(tokenizer, data.max_length, add_special_tokens=False, pair=False)
    pair = data.text_pair_column is not None
    template = read_template(method, labels, tokenizer, pair=pair, is_encoder=is_encoder)
    demonstrations, report = None, list(template.report)
    if method.demonstrations:
        whole = [
            example
            for example, count in zip(train, token_counts(tokenizer, train), strict=True)
            if count <= data.max_length
        ]
        demonstrations = Demonstrations(whole, labels, method.demonstrations, method.choose, seed)
        report.append(f"demonstrations: {method.demonstrations} of each label, {method.choose}")
        if longer := len(train) - len(whole):
            report.append(f"demonstrations: {longer} training texts of more than {data.max_length} tokens are not used")
        report += demonstrations.report
    return TemplateEncoder(template, demonstrations, tokenizer, data.max_length, is_encoder, tuple(report))
