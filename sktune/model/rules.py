"""The rules of a recipe, applied to what `attach` is given; and what only a model from Python can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from sktune.errors import Problem, UserError
from sktune.methods.config import MethodConfig
from sktune.model.given_model import DTYPES, quantization_section
from sktune.recipe.rules import broken_rules
from sktune.sections import ModelSection, Section
from sktune.tasks.config import TaskConfig


def refuse_other_models(model: Any) -> None:
    """Refuses what is no plain model of transformers: wrappers, and models with a head that would stay unused.

    Raises:
        UserError: with what to load instead.
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"attach: a {type(model).__name__} is no model of transformers as it was loaded (of peft: take its layers "
            "out with unload(), or merge them with merge_and_unload()); give AutoModel.from_pretrained(...) or "
            "AutoModelForCausalLM.from_pretrained(...)"
        )
    base = getattr(model, model.base_model_prefix, model)
    if model is not base and model.get_output_embeddings() is None:
        raise UserError(
            f"attach: {type(model).__name__} has a head of its own, which would stay frozen and unused; load the model "
            "with AutoModel, and name the task: the head is put on here"
        )


def check_sections(model: PreTrainedModel, method: MethodConfig, task: TaskConfig) -> None:
    """Holds method, task and model to the rules of a recipe.

    Raises:
        UserError: with every problem, as a recipe's are told.
    """
    if method.answers_in_words:
        raise UserError(
            f"attach: {method.name} is a template on the data more than a part of the model; run it from a recipe "
            "(method.name), with `sktune train` or sktune.training.run.train"
        )
    sections: dict[str, Section] = {"method": method, "task": task, "quantization": quantization_section(model)}
    # Of the model only its arithmetic: its name is no concern of a model that is loaded already.
    if model.dtype in DTYPES:
        sections["model"] = ModelSection.model_validate({"name_or_path": "given", "dtype": DTYPES[model.dtype]})
    _refuse(broken_rules(sections))


def number_of_labels(
    task: TaskConfig, num_labels: int | None, labels: Sequence[str] | None
) -> tuple[int | None, tuple[str, ...] | None]:
    """(number, names) of a task's labels, from `attach`'s arguments and the task's own section.

    Raises:
        UserError: where there are none or too few, for different answers, and for labels without effect.
    """
    if not (task.has_head and task.has_label_set):
        # A number of labels goes with every task in calls that are written once for several; names say more.
        if labels is not None:
            _refuse([Problem("labels", f"would do nothing: {task.name} has no label set", cure="leave it out.")])
        return None, task.given_labels
    if labels is not None and task.given_labels is not None and tuple(labels) != tuple(task.given_labels):
        _refuse([Problem("labels", "are others than the task's own", ", ".join(task.given_labels), "leave one out.")])
    names = tuple(labels) if labels is not None else task.given_labels
    count = len(names) if names is not None else num_labels
    if count is None:
        raise UserError(f"attach: {task.name} needs num_labels, the number of classes, or labels, their names")
    if num_labels is not None and num_labels != count:
        _refuse([Problem("num_labels", f"is {num_labels}, and there are {count} labels", str(count), "leave one out.")])
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        cure = "for a number give task='regression'; yes and no are two labels."
        _refuse([Problem("num_labels", f"is {count!r}", f"2 or more with {task.name}", cure)])
    if names is not None and (len(set(names)) < len(names)):
        _refuse([Problem("labels", "must name each label once", "a list of different labels", "leave out the second.")])
    return count, names


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        raise UserError("attach: " + "\n".join(map(_line, problems)))


def _line(problem: Problem) -> str:
    allowed = f"; allowed: {problem.allowed}" if problem.allowed else ""
    return f"{problem.field}: {problem.message}{allowed}; {problem.cure}".rstrip(".")
