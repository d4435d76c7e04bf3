"""Tasks: a folder each, with its section of the recipe (`config.py`) and what it does with data (`task.py`)."""

from sktune.registry import Registry

TASKS = Registry(
    "task",
    "task",
    {
        "token_classification": "sktune.tasks.token_classification:TokenClassification",
        "sequence_classification": "sktune.tasks.sequence_classification:SequenceClassification",
        "pair_classification": "sktune.tasks.pair_classification:PairClassification",
        "regression": "sktune.tasks.regression:Regression",
        "causal_lm": "sktune.tasks.causal_lm:CausalLM",
        "multi_label": "sktune.tasks.multi_label:MultiLabel",
    },
)
