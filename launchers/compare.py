"""Runs a comparison, all cells in one launch: what `deepspeed`, `torchrun` or `python` starts. `sktune compare`.

deepspeed --num_gpus 2 launchers/compare.py --recipe recipes/compare/newswire.yaml [--methods ...] [overrides ...]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sktune.cli import main

sys.exit(main(["compare", *sys.argv[1:]]))
