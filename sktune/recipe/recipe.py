"""The typed recipe: its sections together."""

from __future__ import annotations

from sktune.recipe.methods import MethodSection, TemplateMethod
from sktune.sections import (
    CompareSection,
    DataSection,
    DistributedSection,
    ModelSection,
    OutputSection,
    QuantizationSection,
    Section,
    TaskSection,
    TrackingSection,
    TrainingSection,
)


class Recipe(Section):
    """One training run as data."""

    model: ModelSection
    quantization: QuantizationSection = QuantizationSection()
    method: MethodSection
    task: TaskSection
    data: DataSection
    training: TrainingSection = TrainingSection()
    distributed: DistributedSection = DistributedSection()
    tracking: TrackingSection = TrackingSection()
    output: OutputSection
    compare: CompareSection = CompareSection()

    @property
    def has_visible_prefix(self) -> bool:
        """Whether every token must see keys and values in front of each layer's, however long the input is."""
        return self.method.name in ("sk_prefix", "prefix_tuning")

    @property
    def needs_language_model(self) -> bool:
        """Whether the model is loaded with its own head: a causal one, or an encoder's masked one."""
        return self.task.name == "causal_lm" or isinstance(self.method, TemplateMethod)
