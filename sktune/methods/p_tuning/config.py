"""The section of P-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from sktune.errors import Problem
from sktune.methods.config import MethodConfig
from sktune.sections import DataSection, idle
from sktune.tasks.config import TaskConfig


class PTuningConfig(MethodConfig):
    """Embeddings in front of the input that a small network makes (Liu et al., arXiv 2103.10385)."""

    name: Literal["p_tuning"] = "p_tuning"

    known_as: ClassVar[Mapping[str, str]] = {"ptuning": ""}
    num_virtual_tokens: int = Field(20, ge=1, description="Without a template.")
    encoder: Literal["mlp", "lstm"] = Field("mlp", description="The network that makes them.")
    hidden_size: int = Field(128, ge=1, description="Of the network.")
    num_layers: int = Field(2, ge=1, description="Of the LSTM.")
    template: str | None = Field(
        None, min_length=1, description="A text whose tokens are tuned, except the anchors' and the opening ones."
    )
    anchors: tuple[str, ...] = Field((), description="Words of the template that stay the tokens they are.")

    @property
    def opens_sequence(self) -> bool:
        return self.template is not None

    def problems(self, task: TaskConfig | None, data: DataSection | None) -> Iterator[Problem]:
        if self.template is None:
            why, cure = "there is no template", "write method.template."
            yield from idle("method", self, ("anchors",) if self.anchors else (), why, cure)
        else:
            if not self.template.strip():
                yield Problem("method.template", "is blank", "a text", "write one, or leave it out.")
            why, cure = "the template's tokens are counted", "leave method.template out."
            yield from idle("method", self, ("num_virtual_tokens",), why, cure)
        if self.encoder == "mlp":
            yield from idle("method", self, ("num_layers",), "encoder is mlp", "set method.encoder: lstm.")
