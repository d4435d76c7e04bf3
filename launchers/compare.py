"""Runs a comparison on several processes, all cells in one launch: what `deepspeed`, `torchrun` or `python` starts.

deepspeed --num_gpus 2 launchers/compare.py --recipe recipes/compare/newswire.yaml [--methods ...] [overrides ...]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sktune.comparison.command import add_compare_arguments, run_compare
from sktune.process import guarded

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="a recipe file")
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # deepspeed passes it
    add_compare_arguments(parser)
    options = parser.parse_intermixed_args()
    sys.exit(guarded(run_compare, options.recipe, options))
