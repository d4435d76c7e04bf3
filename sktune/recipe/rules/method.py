"""Rules between the method and other sections that ask its traits; what concerns its own options is in its folder."""

from __future__ import annotations

from collections.abc import Iterator

from sktune.errors import Problem
from sktune.methods import METHODS
from sktune.methods.config import MethodConfig
from sktune.sections import ModelSection, QuantizationSection
from sktune.tasks.config import TaskConfig


def something_is_trained(method: MethodConfig, task: TaskConfig) -> Iterator[Problem]:
    """Where the task has no head that trains, the method must."""
    if not task.has_head and not (method.trains or method.scores_only):
        yield Problem(
            "method.name",
            f"nothing would be trained: {task.name} uses the model's own output layer and has no head",
            f"with {task.name}: every method but {method.name}",
            "choose another one, or a task with a head.",
        )


def unfrozen_layers_are_whole(
    method: MethodConfig, model: ModelSection, quantization: QuantizationSection
) -> Iterator[Problem]:
    """What trains is fp32, and packed weights have no gradient."""
    if not method.trains_backbone:
        return
    if quantization.bits is not None:
        frozen = [name for name in METHODS if not METHODS.config(name).trains_backbone]
        yield Problem(
            "method.name",
            f"{method.name} trains the model's own weights, which have no gradient in {quantization.bits} bits",
            f"with quantization: {', '.join(frozen)}",
            "choose one of those, or set load_in_4bit and load_in_8bit to false.",
        )
    if model.dtype != "float32":
        yield Problem(
            "model.dtype",
            f"{method.name} trains the model's own weights, and everything that trains is float32",
            "float32",
            "set model.dtype: float32.",
        )


RULES = (something_is_trained, unfrozen_layers_are_whole)
