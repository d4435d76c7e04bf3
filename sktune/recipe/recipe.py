"""The typed recipe: its sections together."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny

from sktune.methods import METHODS
from sktune.methods.config import MethodConfig
from sktune.sections import (
    CompareSection,
    DataSection,
    DistributedSection,
    ModelSection,
    OutputSection,
    QuantizationSection,
    Section,
    TrackingSection,
    TrainingSection,
)
from sktune.tasks import TASKS
from sktune.tasks.config import TaskConfig


class Recipe(Section):
    """One training run as data."""

    model: ModelSection
    quantization: QuantizationSection = QuantizationSection()
    method: Annotated[SerializeAsAny[MethodConfig], BeforeValidator(METHODS.read)]
    task: Annotated[SerializeAsAny[TaskConfig], BeforeValidator(TASKS.read)]
    data: DataSection
    training: TrainingSection = TrainingSection()
    distributed: DistributedSection = DistributedSection()
    tracking: TrackingSection = TrackingSection()
    output: OutputSection
    compare: CompareSection = CompareSection()

    @property
    def needs_language_model(self) -> bool:
        """Whether the model is loaded with its own head: a causal one, or an encoder's masked one."""
        return self.task.needs_language_model or self.method.answers_in_words
