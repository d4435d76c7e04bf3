"""The process that a command runs in: its environment, its ranks, and how it ends.

Imports nothing heavy by itself, since libraries read the environment when they are imported.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sktune.training.ranks import Ranks

# How gloo, NCCL and DeepSpeed say that a peer is gone or silent.
_LOST_RANK = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "NCCL", "remote worker")


def guarded(command: Any, *arguments: Any) -> int:
    """Runs a command; returns its exit status, 0 where it has none of its own.

    A user's mistake becomes one message and exit status 2, not a traceback; SKTUNE_DEBUG=1 shows it all the same.
    """
    try:
        return command(*arguments) or 0
    except (ValueError, FloatingPointError, OSError) as error:
        # An OSError with a file's name says what is wrong with it: no rights, no space, no folder.
        if os.environ.get("SKTUNE_DEBUG") or (isinstance(error, OSError) and error.filename is None):
            raise
        rank = int(os.environ.get("RANK", "0"))
        print(
            f"error: {error}" if rank == 0 else f"rank {rank} stopped: {str(error).splitlines()[0]}",
            file=sys.stderr,
        )
        return 2
    except RuntimeError as error:
        # A rank that died shows in the others as a broken connection; which one it was, its own message says.
        if os.environ.get("SKTUNE_DEBUG") or not any(sign in str(error) for sign in _LOST_RANK):
            raise
        detail = str(error).splitlines()[0]
        print(f"error: another process of this run ended or is silent; see its own message ({detail})", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def prepare_process() -> None:
    """Logging, and the environment that libraries read when they are imported."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    is_main = os.environ.get("RANK", "0") == "0"
    logging.getLogger("sktune").setLevel(logging.INFO if is_main else logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # Of the libraries below sktune, and nothing a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def join_ranks(timeout_seconds: int) -> Ranks:
    """Prepares the process and joins the others of its launch, if any; see `start_ranks`."""
    prepare_process()
    from sktune.training.ranks import start_ranks

    return start_ranks(timeout_seconds)


def leave() -> None:
    """Leaves them, when all that is done together is done."""
    from sktune.training.ranks import leave_ranks

    leave_ranks()
