"""Rules of the methods that SK-Tuning is compared with."""

from __future__ import annotations

from collections.abc import Iterator

from sktune.errors import Problem
from sktune.recipe.methods import (
    FullFineTuningMethod,
    IA3Method,
    MethodSection,
    PrefixTuningMethod,
    PromptBasedMethod,
    PromptTuningMethod,
    PTuningMethod,
    TopLayersMethod,
)
from sktune.sections import DataSection, ModelSection, QuantizationSection, TaskSection, idle


def text_goes_with_init_text(method: MethodSection) -> Iterator[Problem]:
    if not isinstance(method, PromptTuningMethod | PrefixTuningMethod):
        return
    if method.init == "text" and not (method.text or "").strip():
        yield Problem("method.text", "is needed to start from a text", "a text", "write one, or choose another init.")
    elif method.init != "text" and method.text is not None:
        yield from idle("method", method, ("text",), f"init is {method.init}", "set method.init: text.")


def reparametrization_starts_from_noise(method: MethodSection) -> Iterator[Problem]:
    if not isinstance(method, PrefixTuningMethod):
        return
    if method.reparametrize and method.init == "text":
        yield Problem(
            "method.reparametrize",
            "a network that makes the keys and values cannot start from those of a text",
            "false with init: text",
            "set method.reparametrize: false, or method.init: random.",
        )
    if not method.reparametrize:
        why, cure = "reparametrize is false", "set method.reparametrize: true."
        yield from idle("method", method, ("hidden_size",), why, cure)


def p_tuning_options_have_effect(method: MethodSection) -> Iterator[Problem]:
    if not isinstance(method, PTuningMethod):
        return
    if method.template is None:
        why, cure = "there is no template", "write method.template."
        yield from idle("method", method, ("anchors",) if method.anchors else (), why, cure)
    else:
        why, cure = "the template's tokens are counted", "leave method.template out."
        yield from idle("method", method, ("num_virtual_tokens",), why, cure)
    if method.encoder == "mlp":
        yield from idle("method", method, ("num_layers",), "encoder is mlp", "set method.encoder: lstm.")


def start_from_labels_needs_labels(method: MethodSection, task: TaskSection, data: DataSection) -> Iterator[Problem]:
    unlabelled = task.name == "regression" or data.target_column is not None
    if isinstance(method, PromptTuningMethod) and method.init == "labels" and unlabelled:
        yield Problem(
            "method.init",
            f"cannot be labels: {task.name} with this data has none",
            "random, vocabulary, text",
            "choose one of those.",
        )


def ia3_feedforward_is_among_its_targets(method: MethodSection) -> Iterator[Problem]:
    if not isinstance(method, IA3Method) or method.feedforward_modules is None:
        return
    if strangers := sorted(set(method.feedforward_modules) - set(method.target_modules or ())):
        yield Problem(
            "method.feedforward_modules",
            f"names {', '.join(strangers)}, which method.target_modules does not",
            "some of method.target_modules",
            "name the layers in method.target_modules as well.",
        )


def unfrozen_layers_are_whole(
    method: MethodSection, model: ModelSection, quantization: QuantizationSection
) -> Iterator[Problem]:
    """What trains is fp32, and packed weights have no gradient."""
    if not isinstance(method, FullFineTuningMethod | TopLayersMethod | PromptBasedMethod):
        return
    if quantization.bits is not None:
        yield Problem(
            "method.name",
            f"{method.name} trains the model's own weights, which have no gradient in {quantization.bits} bits",
            "with quantization: lora, ia3, bottleneck_adapter, in_context and the prompt and prefix methods",
            "choose one of those, or set load_in_4bit and load_in_8bit to false.",
        )
    if model.dtype != "float32":
        yield Problem(
            "model.dtype",
            f"{method.name} trains the model's own weights, and everything that trains is float32",
            "float32",
            "set model.dtype: float32.",
        )


RULES = (
    text_goes_with_init_text,
    reparametrization_starts_from_noise,
    p_tuning_options_have_effect,
    start_from_labels_needs_labels,
    ia3_feedforward_is_among_its_targets,
    unfrozen_layers_are_whole,
)
