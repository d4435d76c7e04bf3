"""Tasks: the head that turns hidden states into answers, and how answers are scored."""
