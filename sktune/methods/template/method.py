"""A method whose input is more than the text, and whose answer is a word."""

from __future__ import annotations

from sktune.methods.method import Frame, Method
from sktune.methods.template.config import TemplateConfig
from sktune.methods.template.encode import template_encoder
from sktune.methods.template.task import TemplateTask
from sktune.tasks.task import Task


class TemplateMethod(Method):
    """Asks for the label of a text in a template, which the language model completes."""

    @classmethod
    def reframe(cls, config: TemplateConfig, task: Task, frame: Frame) -> Task:
        encoder = template_encoder(
            config,
            frame.data,
            frame.labels,
            frame.tokenizer,
            frame.train,
            is_encoder=frame.is_encoder(),
            seed=frame.seed,
        )
        return TemplateTask(task, encoder)
