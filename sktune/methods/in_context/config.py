"""The section of zero-shot and few-shot answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from sktune.methods.template.config import TemplateConfig
from sktune.sections import TrainingSection


class InContextConfig(TemplateConfig):
    """Nothing is trained: the template alone (zero-shot), or behind demonstrations (few-shot, arXiv 2005.14165)."""

    name: Literal["in_context"] = "in_context"

    known_as: ClassVar[Mapping[str, str]] = {"icl": "", "few_shot": ""}

    trains: ClassVar[bool] = False
    scores_only: ClassVar[bool] = True

    @classmethod
    def unread(cls, training: TrainingSection) -> frozenset[str]:
        read = {"per_device_eval_batch_size"}
        return frozenset(f"training.{key}" for key in TrainingSection.model_fields if key not in read)
