"""The section of full fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from sktune.methods.config import MethodConfig, StartsAs


class FullFineTuningConfig(MethodConfig):
    """The whole model is trained."""

    name: Literal["full"] = "full"

    known_as: ClassVar[Mapping[str, str]] = {"full_finetuning": "", "finetune": ""}

    trains_backbone: ClassVar[bool] = True

    @property
    def starts_as(self) -> StartsAs:
        return "model"
