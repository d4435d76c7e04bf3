"""Whether to share the backbone among the ranks, or to give each its own copy."""

from __future__ import annotations

from sktune.planning.planned_bytes import USABLE
from sktune.planning.planner import plan
from sktune.planning.units import gibibytes
from sktune.recipe.recipe import Recipe


def choose_sharding(recipe: Recipe, ranks: int, memory_bytes: int) -> tuple[bool, str]:
    """Chooses copies where they fit, since nothing has to be gathered then.

    Args:
        recipe: as training reads it.
        ranks: of the run.
        memory_bytes: that each rank can use.

    Returns:
        Whether to share, and the reason in a sentence.

    Raises:
        ValueError: for whatever the user can correct.
    """
    if ranks == 1:
        return False, "one rank has nobody to share the backbone with"
    copied = plan(recipe, ranks=ranks, shard_backbone=False, compare_checkpointing=False)
    needed, usable = gibibytes(copied.peak), gibibytes(int(USABLE * memory_bytes))
    amount = f"{needed} at its peak, and {USABLE:.0%} of a rank's memory are {usable}"
    if copied.peak <= USABLE * memory_bytes:
        return False, f"a copy of the backbone on each rank fits ({amount}), so no weights have to be gathered"
    return True, f"the ranks share the backbone, since a copy on each does not fit ({amount})"
