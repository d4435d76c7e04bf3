"""How the texts of a run become tokens."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from sktune.data.tokenization import check_tokenizer
from sktune.sections import DataSection


@dataclass(frozen=True)
class Coder:
    """A tokenizer, and what the method, the model and the recipe say of its use.

    Attributes:
        tokenizer: a fast one.
        data: lengths, columns and templates.
        add_special_tokens: False where the method brings them with its prompt (a decoder reading after it).
        is_encoder: whether the model reads both ways.
        max_positions: most tokens that the model reads; None: no limit.
    """

    tokenizer: PreTrainedTokenizerBase
    data: DataSection
    add_special_tokens: bool
    is_encoder: bool
    max_positions: int | None = None

    @property
    def two_segments(self) -> bool:
        """Whether a pair is read as an encoder's two segments; else through `data.pair_template`."""
        return self.is_encoder and self.data.text_pair_column is not None

    def check(self, two_segments: bool) -> None:
        """Refuses a tokenizer without offsets, and a maximum length that special tokens fill.

        Raises:
            UserError: naming the tokenizer.
        """
        check_tokenizer(self.tokenizer, self.data.max_length, self.add_special_tokens, two_segments)
