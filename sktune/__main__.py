"""`python -m sktune`: the same as the command `sktune`."""

import sys

from sktune.cli import main

sys.exit(main())
