"""Zero-shot and few-shot answers (arXiv 2005.14165): the frozen language model reads the template, nothing trains.

Template and demonstrations: `sktune.methods.template`.
"""

from __future__ import annotations

from sktune.methods.template.method import TemplateMethod


class InContext(TemplateMethod):
    """The frozen model as it is."""
