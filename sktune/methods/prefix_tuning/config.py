"""The section of prefix tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from sktune.errors import Problem
from sktune.methods.config import FromTextConfig
from sktune.methods.upper_layers import UpperLayersConfig
from sktune.sections import DataSection, idle
from sktune.tasks.config import TaskConfig


class PrefixTuningConfig(UpperLayersConfig, FromTextConfig):
    """Keys and values of their own in front of every layer's (Li and Liang, arXiv 2101.00190)."""

    name: Literal["prefix_tuning"] = "prefix_tuning"

    known_as: ClassVar[Mapping[str, str]] = {"prefix": ""}
    init: Literal["random", "text"] = Field("random", description="text: the keys and values the model makes of it.")
    reparametrize: bool = Field(False, description="Make them by a two-layer network from one embedding a position.")
    hidden_size: int = Field(512, ge=1, description="Width of the hidden layer of that network (reparametrize).")

    visible_prefix: ClassVar[bool] = True

    def problems(self, task: TaskConfig | None, data: DataSection | None) -> Iterator[Problem]:
        yield from super().problems(task, data)
        if self.reparametrize and self.init == "text":
            yield Problem(
                "method.reparametrize",
                "a network that makes the keys and values cannot start from those of a text",
                "false with init: text",
                "set method.reparametrize: false, or method.init: random.",
            )
        if self.init != "text":
            why = "without a text there is nothing for the lower blocks to see, so all take part"
            yield from idle("method", self, ("layers",), why, "set method.init: text.")
        if not self.reparametrize:
            why, cure = "reparametrize is false", "set method.reparametrize: true."
            yield from idle("method", self, ("hidden_size",), why, cure)
