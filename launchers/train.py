"""Trains a recipe: what `deepspeed`, `torchrun` or plain `python` starts. The same as `sktune train`.

deepspeed --num_gpus 2 launchers/train.py --recipe recipes/llama7b_conll.yaml [section.field=value ...] [--resume]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sktune.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
