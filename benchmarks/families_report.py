"""The page of benchmarks/families.py: a table of families and methods, from the result."""

from __future__ import annotations

import math
import re
from typing import Any

METHODS = ("sk_prefix", "sk_prompt", "prefix_tuning", "llama_adapter", "lora", "ia3", "bottleneck_adapter")
HEADING = """# Families and methods

Before a run, and in `sktune.attach`, sktune tries on the user's own model that the method, which has learned nothing
yet, reads as the plain model does, and refuses it where not (`model.check_step_zero`; [`design.md`](design.md)). This
page is what that gives for a tiny model of each family of the installed transformers: a few layers of small widths,
large random weights, the configuration's own defaults otherwise, float32 on a CPU. A model of your own may have other
settings than its family's defaults (a rotary scaling, a window, chunks): it is tried itself.

    python benchmarks/families.py [FAMILY ...]

A figure is the largest difference from the plain model, of the method at its start, relative to the size of a hidden
state, rounded up to a power of ten. A letter says why a method is refused; each refusal names the family and what to
use instead.
"""
UNNAMED = re.compile(r"^method\.(?:name|target_modules): ")
FIGURE = re.compile(r"\d(?:\.\d)?e[+-]\d\d|\b\d+\b")


def report(result: dict[str, Any]) -> str:
    """The page, Markdown."""
    tried = {name: found["methods"] for name, found in result["families"].items() if found and "methods" in found}
    letters: dict[str, str] = {}
    rows = []
    for family, cells in tried.items():
        shown = [_cell(family, method, cells[method], letters) for method in METHODS]
        rows.append(f"| {family} | {' | '.join(shown)} |")
    counts = {status: _count(tried, status) for status in ("exact", "refused", "wrong", "error", "not tried")}
    environment = result["environment"]
    versions = ", ".join(f"{name} {environment[name]}" for name in ("transformers", "torch"))
    lines = [
        HEADING,
        f"Of {len(tried) * len(METHODS)} pairs of {len(tried)} families ({versions}): {counts['exact']} exact, "
        f"{counts['refused']} refused in a sentence,",
        f"{counts['wrong']} wrong without a word, {counts['error']} ended in another error, {counts['not tried']} took "
        "too long.",
        "",
        f"| family | {' | '.join(METHODS)} |",
        f"|---{'|---' * len(METHODS)}|",
        *rows,
        "",
        "Why a method is refused:",
        "",
        *(f"- {letter}: {reason}" for reason, letter in letters.items()),
        "",
        *_not_built(result["families"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _count(tried: dict[str, Any], status: str) -> int:
    return sum(cell["status"] == status for cells in tried.values() for cell in cells.values())


def _cell(family: str, method: str, cell: dict[str, Any], letters: dict[str, str]) -> str:
    if cell["status"] == "exact":
        return _power(cell["difference"])
    if cell["status"] != "refused":
        return f"**{cell['status']}**"
    return letters.setdefault(_general(family, method, cell["reason"]), _letter(len(letters)))


def _power(value: float) -> str:
    return "0" if value == 0 else f"1e{math.ceil(math.log10(value))}"


def _letter(number: int) -> str:
    first, second = divmod(number, 26)
    return ("" if first == 0 else chr(ord("a") + first - 1)) + chr(ord("a") + second)


def _general(family: str, method: str, reason: str) -> str:
    """A refusal without what differs between families and methods: the same reason is one letter."""
    text = UNNAMED.sub("", reason)
    for name, general in ((method, "the method"), (family, "this family")):
        text = re.sub(rf"(?:this )?(?<![\w-]){re.escape(name)}(?![\w-])", general, text)
    text = re.sub(r"(differs from it by) .*?; use", r"\1 more than rounding; use", text)
    text = text.replace("; check_step_zero: false trains it all the same", "")
    text = re.sub(r"name some of its linear layers: .*", "name some of its linear layers", text)
    return FIGURE.sub("n", text).replace("|", "\\|")


def _not_built(families: dict[str, Any]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for name, found in families.items():
        if found is None:
            reasons.setdefault("no model of text, or none that reads token ids alone", []).append(name)
        elif "not_built" in found:
            reasons.setdefault(found["not_built"].replace("|", "\\|"), []).append(name)
    lines = ["Not tried:", ""]
    return lines + [f"- {reason}: {', '.join(names)}" for reason, names in reasons.items()]
