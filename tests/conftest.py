"""What holds for all tests, and fixtures that several files share."""

import os

# Runs in this process are compared bit by bit with runs in others: sums must be split among as many threads.
os.environ["OMP_NUM_THREADS"] = "1"

pytest_plugins = ["training_fixtures"]
