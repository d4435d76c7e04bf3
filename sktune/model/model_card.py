"""An adapter's README.md: what it is and how it is used, as pages of a model hub show it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from sktune.embedded import is_embedded, must_be_here
from sktune.tasks.config import TaskConfig


def model_card(card: Mapping[str, Any], task: TaskConfig, *, in_python: bool) -> str:
    """The README.md of an adapter.

    Args:
        card: what `adapter.json` says.
        task: it was trained on.
        in_python: whether `sktune.load` takes it.
    """
    base, method = card["model"], card["method"]
    on_a_hub = base is not None and not is_embedded(base) and not must_be_here(base) and not Path(base).exists()
    # Where the folder of somebody's model is, is nobody else's business.
    shown = "a model without a name" if base is None else base if on_a_hub or is_embedded(base) else Path(base).name
    front = ModelCardData(
        base_model=base if on_a_hub else None,
        library_name="sktune",
        pipeline_tag=task.hub_task,
        tags=["sktune", method.replace("_", "-"), "parameter-efficient"],
    )
    packed = card["quantization"]
    in_bits = f" in {4 if packed['load_in_4bit'] else 8} bits" if packed else ""
    lines = [
        f"---\n{front.to_yaml()}\n---\n",
        f"# {method} for {shown}\n",
        f"An adapter for {task.name.replace('_', ' ')}: {card['trainable_parameters']:,} parameters, trained with "
        f"[sktune](https://arxiv.org/abs/2410.08598) {card['sktune_version']} on the frozen base model"
        f"{in_bits}. The base model's weights are not in here.\n",
    ]
    if card["revision"]:
        lines.append(f"Revision of the base model: `{card['revision']}`.\n")
    if text := card["belongs_to"].get("method.text"):
        lines += ["The text that the frozen model reads:\n", *(f"    {line}" for line in text.splitlines()), ""]
    if card["labels"]:
        lines.append(f"Labels, in order: {', '.join(map(str, card['labels']))}.\n")
    if card["metrics"]:
        lines += ["| score | |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in card["metrics"].items()] + [""]
    if in_python:
        lines.append(f"```python\nimport sktune\n\ntuned = sktune.load({_HERE!r})\n```\n")
    lines.append(f'```bash\nsktune predict {_HERE} --text "..."\n```\n')
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    lines.append(f"`recipe.yaml` says how it was trained, `adapter.json` what it must be loaded with. {versions}.")
    return "\n".join(lines) + "\n"


_HERE = "this_folder"
