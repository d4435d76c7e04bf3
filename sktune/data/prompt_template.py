"""What a model reads as one text: an example's text or pair, filled into the template of the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from sktune.data.cutting import cut_texts, token_counts
from sktune.data.examples import Example
from sktune.errors import UserError
from sktune.sections import DataSection


@dataclass(frozen=True)
class PromptTemplate:
    """`data.text_template` of single texts, `data.pair_template` of pairs."""

    field: str
    template: str

    @classmethod
    def of(cls, data: DataSection) -> PromptTemplate:
        """The template that the recipe's examples are read through."""
        field = "text_template" if data.text_pair_column is None else "pair_template"
        return cls(f"data.{field}", getattr(data, field))

    def fill(self, example: Example) -> str:
        """The example as one text.

        Raises:
            UserError: for a template that holds other fields.
        """
        fields = {"text": example.text}
        if self.field == "data.pair_template":
            fields["text_pair"] = example.text_pair or ""
        try:
            return self.template.format(**fields)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            allowed = " and ".join(f"{{{field}}}" for field in fields)
            raise UserError(
                f"{self.field}: {self.template!r} may hold {allowed} only ({error!r}); write other braces twice."
            ) from None

    @cached_property
    def has_tail(self) -> bool:
        """Whether something follows the last text: a question, which must outlive a cut."""
        return not self.template.endswith("}") or self.template.endswith("}}")

    def check(self, tokenizer: PreTrainedTokenizerBase, max_length: int, special: bool) -> None:
        """Refuses a template that leaves no room for a text.

        Raises:
            UserError: with the length that it needs.
        """
        own = _length(tokenizer, self.fill(Example(0, "", "")), special)
        if self.has_tail and own >= max_length:
            raise UserError(
                f"data.max_length is {max_length}, but {self.field} alone has {own} tokens; set it to at least "
                f"{own + 1}"
            )

    def shorten(self, example: Example, tokenizer: PreTrainedTokenizerBase, keep: int, special: bool) -> str:
        """The example with its texts cut until the filled template has at most `keep` tokens, or the texts are empty.

        Args:
            example: one whose filled template is longer.
            tokenizer: counts the tokens, and says on which side a text is cut.
            keep: tokens allowed, special tokens counted.
            special: whether the tokenizer adds its special tokens.
        """
        (room,) = token_counts(tokenizer, [example])
        filled = self.fill(example)
        while room and (excess := _length(tokenizer, filled, special) - keep) > 0:
            room = max(room - excess, 0)
            (shorter,) = cut_texts(tokenizer, [example], room)
            filled = self.fill(shorter)
        return filled


def _length(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> int:
    return len(tokenizer(text, add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"])
