"""Scores a trained adapter on several processes: what `deepspeed`, `torchrun` or plain `python` starts.

deepspeed --num_gpus 2 launchers/evaluate.py runs/llama7b_conll [--split test] [section.field=value ...]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sktune.cli import add_evaluate_arguments, run_evaluate
from sktune.process import guarded

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # deepspeed passes it
    add_evaluate_arguments(parser)
    options = parser.parse_args()
    sys.exit(guarded(run_evaluate, options.output, options.split, options.overrides))
