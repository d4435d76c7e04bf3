"""Scores a trained adapter: what `deepspeed`, `torchrun` or plain `python` starts. The same as `sktune evaluate`.

deepspeed --num_gpus 2 launchers/evaluate.py runs/llama7b_conll [--split test] [section.field=value ...]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sktune.cli import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
