"""The process that a command runs in: its environment, its ranks, and how it ends.

Imports nothing heavy by itself, since libraries read the environment when they are imported.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any, Literal

from sktune.errors import UserError, first_line
from sktune.terminal import LogFormatter, complain
from sktune.training.stopping import Stopped, listening, requested

if TYPE_CHECKING:
    from sktune.distributed.ranks import Ranks

logger = logging.getLogger("sktune")

# How gloo, NCCL and DeepSpeed say that a peer is gone or silent.
_LOST_RANK = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "NCCL", "remote worker")

_log: Literal["quiet", "verbose"] | None = None


def guarded(command: Any, *arguments: Any) -> int:
    """Runs a command; returns its exit status, 0 where it has none of its own.

    What the user can mend (a `UserError`, a loss that is no number, a file without rights or space) becomes one message
    and exit status 2, not a traceback; SKTUNE_DEBUG=1 shows it all the same. Every other error is a defect and shows
    its traceback. A command that was told to stop ends with 128 and the signal's number; see `training.stopping`.
    """
    with listening():
        try:
            return command(*arguments) or 0
        except (UserError, FloatingPointError, OSError) as error:
            # An OSError with a file's name says what is wrong with it: no rights, no space, no folder.
            if os.environ.get("SKTUNE_DEBUG") or (isinstance(error, OSError) and error.filename is None):
                raise
            complain(
                f"error: {str(error).strip() or first_line(error)}"
                if _is_main()
                else f"rank {os.environ['RANK']} stopped: {first_line(error)}"
            )
            return 2
        except RuntimeError as error:
            # A rank that died shows in the others as a broken connection; which one it was, its own message says.
            if os.environ.get("SKTUNE_DEBUG") or not any(sign in str(error) for sign in _LOST_RANK):
                raise
            detail = first_line(error)
            complain(f"error: another process of this run ended or is silent; see its own message ({detail})")
            return 128 + requested() if requested() else 3
        except Stopped as stop:
            if _is_main():
                complain(f"{stop}" + (f"; {stop.advice}" if stop.advice else ""))
            return stop.status


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def choose_log(kind: Literal["quiet", "verbose"] | None) -> None:
    """Chooses what `prepare_process` then logs: warnings alone, or also what the libraries say; None takes it back."""
    global _log
    _log = kind


def prepare_process(*, computes: bool = True) -> str:
    """Logging, threads, and the environment that libraries read when they are imported.

    Args:
        computes: False leaves threads alone, where nothing has a use for them.

    Returns:
        A line on threads.
    """
    verbose = _log == "verbose"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter("%(asctime)s %(name)s: %(message)s" if verbose else "%(message)s"))
    logging.basicConfig(level=logging.INFO if verbose and _is_main() else logging.WARNING, handlers=[handler])
    level = logging.WARNING if _log == "quiet" else logging.INFO
    logging.getLogger("sktune").setLevel(level if _is_main() else logging.ERROR)
    threads = _share_cores() if computes else "threads: not asked for"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "info" if verbose else "warning")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # Of the libraries below sktune, and nothing a user could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    for name in ("bitsandbytes", "urllib3.connectionpool"):  # kernels that are not there; each try of a connection
        logging.getLogger(name).setLevel(logging.NOTSET if verbose else logging.ERROR)
    # Sockets that connect at the second try.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "INFO" if verbose else "ERROR")
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import transformers

    if verbose:
        transformers.logging.set_verbosity_info()
    else:
        transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return threads


def _share_cores() -> str:
    """Gives each local rank an equal part of the cores that this process may use, as threads of OpenMP, MKL and BLAS.

    Left to themselves the ranks that `deepspeed` starts would each take all cores, and torchrun's would take one. What
    the user has set is kept. Cores are those of the affinity mask and the container's quota.

    Returns:
        What was decided.
    """
    said = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    if said and not _is_torchruns_own(said):
        return f"threads: {', '.join(said)}, as the environment says"
    import joblib  # which loads numpy, and with it a BLAS

    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)  # torchrun's, deepspeed's
    cores = joblib.cpu_count(only_physical_cores=True)
    threads = max(1, cores // ranks)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for what is still to be loaded
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    threadpool_limits(threads)
    of_cores = f"{threads} of {cores} core{'s' if cores > 1 else ''}"
    return f"threads: {of_cores}" + (f" for each of {ranks} local ranks" if ranks > 1 else "")


def _is_torchruns_own(said: list[str]) -> bool:
    """Whether torchrun itself set the number of threads, which it does where the user has not."""
    if said != ["OMP_NUM_THREADS=1"] or "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    import psutil

    try:
        return "OMP_NUM_THREADS" not in psutil.Process(os.getppid()).environ()  # as it was when torchrun was started
    except psutil.Error:
        return False


def join_ranks(timeout_seconds: int) -> Ranks:
    """Prepares the process and joins the others of its launch, if any; see `start_ranks`."""
    logger.info(prepare_process())
    from sktune.distributed.ranks import start_ranks

    return start_ranks(timeout_seconds)


def leave() -> None:
    """Leaves them, when all that is done together is done."""
    from sktune.distributed.ranks import leave_ranks

    leave_ranks()
