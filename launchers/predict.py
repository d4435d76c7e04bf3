"""Answers new texts with a trained adapter: what `deepspeed`, `torchrun` or plain `python` starts. `sktune predict`.

deepspeed --num_gpus 2 launchers/predict.py runs/llama7b_conll news.conll --output tagged.conll [overrides ...]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sktune.cli import main

sys.exit(main(["predict", *sys.argv[1:]]))
