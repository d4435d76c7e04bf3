"""The benchmark's result for people: tables in docs/sharding.md, the picture beside it, the bars in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sharding_bars import MB, MODES, Bar, cell_name

DOCS = Path(__file__).resolve().parents[1] / "docs"
PICTURE = DOCS / "pictures" / "sharding.png"
PAGE = DOCS / "sharding.md"
BEGIN, END = "<!-- begin of what benchmarks/sharding.py writes -->", "<!-- end -->"
MOMENTS = {
    "after_load": "loaded",
    "after_forward": "after forward",
    "in_backward": "in backward",
    "after_backward": "after backward",
    "after_step": "after step",
    "in_evaluation": "in evaluation",
    "at_checkpoint": "at checkpoint",
}
REST = ("peak of a step", "gathered / forward", "gathered / step")
STACKS = {"sktune": "#2166ac", "stock": "#d6604d"}


def print_bars(found: list[Bar]) -> None:
    """One line for each bar."""
    for bar in found:
        stock = "" if bar["stock"] is None else f"  (stock: {_shown(bar['stock'])})"
        verdict = "holds" if bar["holds"] else "FAILS"
        print(f"{verdict}  {bar['what']}: {_shown(bar['measured'])}, limit {_shown(bar['limit'])}{stock}")


def write_report(result: dict[str, Any]) -> None:
    """Replaces the generated part of docs/sharding.md, and draws the picture."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END, 1)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(result)}\n{END}{after}", encoding="utf-8")
    draw(result["cells"])


def tables(result: dict[str, Any]) -> str:
    """Markdown: bytes at the moments, peaks and gathered bytes, the bars, the environment."""
    environment = result["environment"]
    lines = []
    for ranks in (2, 3):
        rows = [row for bits in (4, 8, 16) for mode in MODES for row in _rows(result["cells"], ranks, bits, mode)]
        if rows:
            head = ["bits", "checkpointing", "stack", "load peak", *MOMENTS.values(), *REST]
            lines += [f"### {ranks} ranks: MB on the rank that holds most", "", *_table(head, rows), ""]
    if result["bars"]:
        rows = []
        for bar in result["bars"]:
            amounts = [_shown(bar[key]) for key in ("measured", "limit", "stock")]
            rows.append([bar["what"], *amounts, "yes" if bar["holds"] else "**no**"])
        lines += ["### Bars", "", *_table(["what", "measured", "limit", "stock", "holds"], rows), ""]
    packages = ("python", "torch", "transformers", "deepspeed", "bitsandbytes")
    versions = ", ".join(f"{name} {environment[name]}" for name in packages)
    lines += [f"Measured on a CPU ({environment['cpu']}, {environment['cores']} cores, one thread a rank); {versions}."]
    return "\n".join(lines) + "\n"


def _rows(cells: dict[str, Any], ranks: int, bits: int, mode: str) -> list[list[str]]:
    rows = []
    for stack in STACKS:
        cell = cells.get(cell_name(ranks, bits, stack), {})
        if cell.get("status") == "finished":
            numbers = cell[mode]
            peak = max(max(numbers["peak"][phase]) for phase in ("forward", "backward", "step"))
            live = [max(numbers["live"][moment]) for moment in MOMENTS]
            gathered = [numbers["gathered_per_forward"], numbers["gathered_per_step"]]
            amounts = [max(cell["load_peak"]), *live, peak, *gathered]
            rows.append([str(bits), mode, stack, *(f"{amount / MB:.1f}" for amount in amounts)])
    return rows


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value / MB:.1f} MB" if value >= 1000 else str(value)
    return f"{value:.3g}"


def draw(cells: dict[str, Any]) -> None:
    """Live bytes through a run's moments on 2 ranks without checkpointing, one panel for each number of bits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.6))
    labels = ["peak of loading", *MOMENTS.values()]
    for axis, bits in zip(axes, (4, 8, 16), strict=True):
        for i, (stack, colour) in enumerate(STACKS.items()):
            cell = cells.get(cell_name(2, bits, stack), {})
            if cell.get("status") != "finished":
                continue
            live = cell["off"]["live"]
            heights = [max(amounts) / MB for amounts in (cell["load_peak"], *(live[moment] for moment in MOMENTS))]
            places = [place + (i - 0.5) * 0.42 for place in range(len(heights))]
            bars = axis.bar(places, heights, width=0.4, color=colour, label=stack)
            axis.bar_label(bars, fmt="%.0f", fontsize=6.5, padding=1)
            if cell["own_shard"] is not None:
                axis.axhline(max(cell["own_shard"]) / MB, color="0.35", linewidth=1, linestyle="--", label="own share")
        axis.set_title({16: "16 bits (bf16)"}.get(bits, f"{bits} bits"))
        axis.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(y=0.12)
    axes[0].set_ylabel("MB of tensors on a rank")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(
        "LLaMA of 405M parameters on 2 ranks, ZeRO-3, 1 x 16 tokens each, without checkpointing", fontsize=11
    )
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=130)
    pyplot.close(figure)
