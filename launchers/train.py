"""Trains a recipe: the script that `deepspeed`, `torchrun` or plain `python` starts.

deepspeed --num_gpus 2 launchers/train.py --recipe recipes/llama7b_conll.yaml [section.field=value ...] [--resume]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sktune.cli import add_train_arguments, run_train
from sktune.process import guarded

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="a recipe file")
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # deepspeed passes it
    add_train_arguments(parser)
    options = parser.parse_args()
    sys.exit(guarded(run_train, options.recipe, options.overrides, options.resume))
