"""What the section `method` of a recipe says of a method, whichever it is; imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from sktune.errors import Problem
from sktune.sections import DataSection, Section, TrainingSection, idle
from sktune.tasks.config import TaskConfig

StartsAs = Literal["text", "model", "noise"]


class MethodConfig(Section):
    """The section `method`: a subclass for each method, with its options, its traits and its rules.

    Everything else asks the traits, never the name.
    """

    name: str

    known_as: ClassVar[Mapping[str, str]] = {}
    """What other tools call it, in lower case, and what else has to be said there for it to be the same."""
    visible_prefix: ClassVar[bool] = False
    """It puts keys and values in front of every layer's, which must stay visible behind a sliding window."""
    trains: ClassVar[bool] = True
    """It has parameters of its own, besides the head's."""
    trains_backbone: ClassVar[bool] = False
    """What it trains are the model's own weights, which must be unquantized float32."""
    inside_model: ClassVar[bool] = False
    """It puts layers of peft around the model's own, which hold adapters of one kind."""
    answers_in_words: ClassVar[bool] = False
    """The language model's own head answers with a word; no head is built."""
    scores_only: ClassVar[bool] = False
    """It trains nothing at all, and a run of no steps is its purpose."""

    @property
    def starts_as(self) -> StartsAs:
        """What it gives before training, which is tried on the user's model (`sktune.model.step_zero`).

        text: what the plain model gives for its text (the one `PromptText` in it) and the input together; model: what
        the plain model gives for the input; noise: neither, so a text woven in the same way stands in for it.
        """
        return "noise"

    @property
    def opens_sequence(self) -> bool:
        """Whether a text of its own opens the sequence with its BOS, so that the input carries none."""
        return False

    @property
    def needs_training_data(self) -> bool:
        """Whether predictions need the training split too."""
        return False

    @property
    def depth_needed(self) -> int:
        """The fewest blocks of a model in which it does what it would do in a deeper one."""
        return 0

    def frozen_blocks(self, depth: int) -> int:
        """How many blocks, of a model's `depth` and counted from the bottom, give an input's states that never change.

        Nothing below trains, drops out or is read again at every step.
        """
        return 0

    @classmethod
    def wants_text(cls, fields: Mapping[str, Any]) -> bool:
        """Whether a section with these fields needs a `text`; a comparison lends it the recipe's."""
        return "text" in cls.model_fields and cls.model_fields["text"].is_required()

    @classmethod
    def unread(cls, training: TrainingSection) -> frozenset[str]:
        """Fields (`training.learning_rate`) without effect on it: a grid over them is not run."""
        return frozenset()

    def longest_row(self, data: DataSection, labels: int, count: Callable[[str], int]) -> tuple[int, str | None]:
        """Tokens of the longest row with all that the method shows in it, but a prompt in front; for a plan.

        Args:
            data: the recipe's section.
            labels: how many there are.
            count: tokens of a text, special tokens included.

        Returns:
            (tokens, a note for the plan or None).
        """
        return data.max_length, None

    def problems(self, task: TaskConfig | None, data: DataSection | None) -> Iterator[Problem]:
        """What is wrong between its own options, and between them and the task or the data.

        Either is None where it is itself wrong, and for an entry of `compare.methods`.
        """
        yield from ()


class FromTextConfig(MethodConfig):
    """What prompt_tuning and prefix_tuning have in common: a length, and a text that they can start from."""

    num_virtual_tokens: int | None = Field(
        None, ge=1, description="null: as many as the text has tokens, 20 without a text."
    )
    init: str
    text: str | None = Field(None, min_length=1, description="With init: text, what to start from.")

    @property
    def starts_as(self) -> StartsAs:
        return "noise" if self.init == "random" else "text"

    @property
    def opens_sequence(self) -> bool:
        return self.init == "text"

    def frozen_blocks(self, depth: int) -> int:
        """How many blocks, of a model's `depth` and counted from the bottom, give an input's states that never change.

        Nothing below trains, drops out or is read again at every step.
        """
        return 0

    @classmethod
    def wants_text(cls, fields: Mapping[str, Any]) -> bool:
        return fields.get("init") == "text"

    def problems(self, task: TaskConfig | None, data: DataSection | None) -> Iterator[Problem]:
        if self.init == "text" and not (self.text or "").strip():
            cure = "write one, or choose another init."
            yield Problem("method.text", "is needed to start from a text", "a text", cure)
        elif self.init != "text" and self.text is not None:
            yield from idle("method", self, ("text",), f"init is {self.init}", "set method.init: text.")
