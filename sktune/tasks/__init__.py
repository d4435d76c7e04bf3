"""Tasks: the head that turns hidden states into answers, and how answers are scored."""

from sktune.tasks.tuned_model import TunedModel, TunedOutput, build_head, check_positions, fold_centre, put_weights

__all__ = ["TunedModel", "TunedOutput", "build_head", "check_positions", "fold_centre", "put_weights"]
