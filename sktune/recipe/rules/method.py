"""Rules of the tuning method: options that belong together, and whether anything is trained at all."""

from __future__ import annotations

from collections.abc import Iterator

from sktune.errors import Problem
from sktune.recipe.methods import HeadOnlyMethod, MethodSection, SKMethod
from sktune.sections import TaskSection, idle

_OPTIONS_WITHOUT_EFFECT = {
    "bottleneck": (),
    "linear": ("rank", "train_down", "activation", "dropout"),
    "identity": ("rank", "train_down", "activation", "dropout", "bias", "shared"),
}


def text_says_something(method: MethodSection) -> Iterator[Problem]:
    if isinstance(method, SKMethod) and not method.text.strip():
        yield Problem("method.text", "is blank", "a text", "say in words what the task is.")


def trainable_text_needs_every_step(method: MethodSection) -> Iterator[Problem]:
    if isinstance(method, SKMethod) and method.trainable_text and method.semantics != "every_step":
        yield Problem(
            "method.trainable_text",
            "a text that is trained changes at every step, so its semantics cannot be cached",
            "false with semantics: cached; true or false with semantics: every_step",
            "set method.semantics: every_step (each step then reads the text again, with gradient).",
        )


def adapter_options_have_effect(method: MethodSection) -> Iterator[Problem]:
    if isinstance(method, SKMethod):
        keys = _OPTIONS_WITHOUT_EFFECT[method.adapter]
        why = f"adapter {method.adapter} has no such part"
        yield from idle("method", method, keys, why, "set method.adapter: bottleneck.")


def something_is_trained(method: MethodSection, task: TaskSection) -> Iterator[Problem]:
    """Every task but causal_lm has a head that trains; causal_lm needs a method that does."""
    if task.name != "causal_lm":
        return
    if isinstance(method, HeadOnlyMethod):
        yield Problem(
            "method.name",
            "nothing would be trained: causal_lm uses the model's own output layer and has no head",
            "with causal_lm: every method but head_only",
            "choose another one, or a task with a head.",
        )
    elif isinstance(method, SKMethod) and method.adapter == "identity" and not method.trainable_text:
        yield Problem(
            "method.adapter",
            "nothing would be trained: causal_lm has no head and adapter identity no parameters",
            "with causal_lm: bottleneck, linear, or identity with trainable_text",
            "set method.adapter: bottleneck.",
        )


RULES = (
    text_says_something,
    trainable_text_needs_every_step,
    adapter_options_have_effect,
    something_is_trained,
)
