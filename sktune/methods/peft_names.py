"""Names of the parameters of adapters that peft has put into a model; without peft, which a plan does not load."""

from __future__ import annotations

import re

_CONTAINERS = re.compile(r"\.(?:lora_\w+|ia3_l)\.(\w+)(?=\.|$)")
"""What holds the parts of a layer by the adapter's name, which is the group."""
FIRST = "default"
"""Name of the first adapter in a model, and of every adapter where it is saved."""


def adapter_of(parameter: str) -> str | None:
    """The adapter that a parameter belongs to, by its name; None for all that is not peft's."""
    found = _CONTAINERS.search(parameter)
    return None if found is None else found.group(1)


def renamed(parameter: str, adapter: str) -> str:
    """The name of the same parameter of another adapter."""
    found = _CONTAINERS.search(parameter)
    return parameter if found is None else parameter[: found.start(1)] + adapter + parameter[found.end(1) :]
