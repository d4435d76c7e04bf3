"""What tasks on texts and pairs of texts have in common: reading them, and making rows of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sktune.backbone import Backbone
from sktune.data import Coder, EncodedSplit, Example, Reading, Row
from sktune.data.cells import as_text
from sktune.data.examples import ABSENT
from sktune.data.labels import label_names
from sktune.data.prompt_template import PromptTemplate
from sktune.data.table import Table
from sktune.data.tokenization import tokenize
from sktune.errors import UserError
from sktune.sections import DataSection
from sktune.tasks.config import PooledConfig
from sktune.tasks.task import Answers, Labels, Task

Reference = str | float | tuple[str, ...]


class TextTask(Task):
    """An answer for each text or pair; as it is, a label of a set."""

    def answer_column(self, data: DataSection) -> tuple[str, str]:
        """(field of the recipe, column) of what is to be answered."""
        return "data.label_column", data.label_column

    def references(
        self, cells: Sequence[Any], class_names: tuple[str, ...] | None, where: str
    ) -> Sequence[Reference | None]:
        """The truth of every row, None where it is missing.

        Args:
            cells: of the column.
            class_names: of the data set, where the column holds their numbers.
            where: the table, for messages.
        """
        return label_names(cells, class_names, self.config.given_labels, where)

    def target(self, reference: Reference, labels: dict[str, int]) -> int | float | list[float]:
        """A row's label as the head takes it; `labels`: label -> id."""
        return labels.get(str(reference), ABSENT)

    def read(self, table: Table, data: DataSection, split: str) -> Reading:
        fields = {"data.text_column": data.text_column}
        if data.text_pair_column is not None:
            fields["data.text_pair_column"] = data.text_pair_column
        answer, column = self.answer_column(data)
        fields[answer] = column
        columns = table.columns(fields)
        class_names = table.coded.get(column)
        references = self.references(columns[answer], class_names, table.where)
        texts = columns["data.text_column"]
        pairs = columns.get("data.text_pair_column", [None] * len(texts))
        paired = data.text_pair_column is not None
        examples = [
            Example(
                row=row,
                text=_text(text, table.where, row, "data.text_column"),
                text_pair=_text(pair, table.where, row, "data.text_pair_column") if paired else None,
                reference=reference,
            )
            for row, (text, pair, reference) in enumerate(zip(texts, pairs, references, strict=True))
            if reference is not None
        ]
        return Reading(examples, len(texts) - len(examples), class_names, table.where, table.report)

    def encode(
        self, examples: Sequence[Example], coder: Coder, labels: Labels, split: str, *, scoring: bool = False
    ) -> EncodedSplit:
        """Texts are cut to `data.max_length` tokens.

        An encoder reads a pair as two segments with its special tokens and segment ids; a decoder reads it through
        `data.pair_template`, and every model reads a single text through `data.text_template`; what a template says
        behind the last text is never cut.
        """
        data, tokenizer, special = coder.data, coder.tokenizer, coder.add_special_tokens
        coder.check(coder.two_segments)
        template = PromptTemplate.of(data)
        options: dict[str, Any] = {
            "max_length": data.max_length, "add_special_tokens": special, "token_type_ids": coder.is_encoder,
        }  # fmt: skip
        if coder.two_segments:
            texts = [example.text for example in examples]
            pairs: list[str] | None = [example.text_pair or "" for example in examples]
        else:
            template.check(tokenizer, data.max_length, special)
            texts, pairs = [template.fill(example) for example in examples], None
        ids = {label: i for i, label in enumerate(labels or ())}
        rows: list[Row] = []
        truncated = 0
        for index, (example, tokens) in enumerate(
            zip(examples, tokenize(tokenizer, texts, pairs, **options), strict=True)
        ):
            truncated += tokens.truncated
            if tokens.truncated and not coder.two_segments and template.has_tail:
                shorter = template.shorten(example, tokenizer, data.max_length, special)
                (tokens,) = tokenize(tokenizer, [shorter], None, **options)
            reference = example.reference
            rows.append(
                Row(
                    index=index,
                    input_ids=tokens.input_ids,
                    token_type_ids=tokens.token_type_ids,
                    labels=self.target(reference, ids),
                    reference=list(reference) if isinstance(reference, tuple) else reference,
                    group=index,
                )
            )
        report = []
        if truncated:
            report.append(f"{split}: {truncated} of {len(examples)} inputs truncated to {data.max_length} tokens")
        if empty := sum(example.is_empty for example in examples):
            report.append(f"{split}: {empty} of {len(examples)} texts are empty")
        return EncodedSplit(rows, report)


def pooling_of(config: PooledConfig, backbone: Backbone) -> str:
    """`first`, `last` or `mean`: what `task.pooling` means for a model."""
    return config.pooling if config.pooling != "auto" else ("mean" if backbone.is_encoder else "last")


def probabilities_of(probabilities: torch.Tensor, rows: Sequence[Row | None], labels: Labels) -> Answers:
    """Row number -> {label: probability}, of a batch's [B, labels] fp32; fillers (None) have none."""
    assert labels is not None
    return {
        row.index: dict(zip(labels, probabilities[i].tolist(), strict=True))
        for i, row in enumerate(rows)
        if row is not None
    }


def _text(value: Any, where: str, row: int, field: str) -> str:
    text = as_text(value, f"{where}, row {row}: {field}")
    if text is None:
        raise UserError(f"{where}, row {row}: {field} is null. Drop the row, or give it a text (it may be '').")
    return text
