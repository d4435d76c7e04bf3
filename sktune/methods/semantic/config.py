"""What the sections of SK-Prefix and SK-Prompt have in common: the text, and the adapter that refines its semantics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from sktune.errors import Problem
from sktune.methods.config import MethodConfig, StartsAs
from sktune.sections import DataSection, idle
from sktune.tasks.config import TaskConfig


class SemanticConfig(MethodConfig):
    """A text and its adapter."""

    text: str = Field(min_length=1, description="The prompt text whose semantics are tuned; say what the task is.")
    adapter: Literal["bottleneck", "linear", "identity"] = Field(
        "bottleneck", description="A low-rank change, one full matrix, or no change of what the model understood."
    )
    rank: int = Field(32, ge=1, description="Inner width of the bottleneck.")
    train_down: bool = Field(
        False, description="Train the bottleneck's first half too; fixed, it costs nothing and disturbs nothing."
    )
    activation: Literal["gelu", "relu", "silu", "tanh"] = Field("tanh", description="Between the bottleneck's halves.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's inner activations.")
    bias: bool = Field(False, description="Biases in the adapter, besides its matrices.")
    semantics: Literal["cached", "every_step"] = Field(
        "cached",
        description="Read the text once and keep what was understood, or read it again at every step.",
    )
    trainable_text: bool = Field(
        False,
        description="Train a copy of the text's embeddings too, through the frozen model (needs every_step).",
    )

    without_effect: ClassVar[dict[str, tuple[str, ...]]] = {
        "bottleneck": (),
        "linear": ("rank", "train_down", "activation", "dropout"),
        "identity": ("rank", "train_down", "activation", "dropout", "bias"),
    }
    """Of each adapter, the options of parts that it does not have."""

    @property
    def starts_as(self) -> StartsAs:
        return "text"

    @property
    def opens_sequence(self) -> bool:
        return True

    def problems(self, task: TaskConfig | None, data: DataSection | None) -> Iterator[Problem]:
        if not self.text.strip():
            yield Problem("method.text", "is blank", "a text", "say in words what the task is.")
        if self.trainable_text and self.semantics != "every_step":
            yield Problem(
                "method.trainable_text",
                "a text that is trained changes at every step, so its semantics cannot be cached",
                "false with semantics: cached; true or false with semantics: every_step",
                "set method.semantics: every_step (each step then reads the text again, with gradient).",
            )
        why = f"adapter {self.adapter} has no such part"
        yield from idle("method", self, self.without_effect[self.adapter], why, "set method.adapter: bottleneck.")
        if task is not None and not task.has_head and self.adapter == "identity" and not self.trainable_text:
            yield Problem(
                "method.adapter",
                f"nothing would be trained: {task.name} has no head and adapter identity no parameters",
                f"with {task.name}: bottleneck, linear, or identity with trainable_text",
                "set method.adapter: bottleneck.",
            )
