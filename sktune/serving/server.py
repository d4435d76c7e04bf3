"""A server from its socket to its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from sktune.distributed.ranks import Ranks
from sktune.errors import UserError
from sktune.sections import Section
from sktune.serving.adapters import Shelf
from sktune.serving.app import Limits, build_app
from sktune.serving.guard import Guard
from sktune.serving.metrics import Metrics
from sktune.serving.waiting import Reader
from sktune.terminal import say

logger = logging.getLogger(__name__)


class Options(Section):
    """How a server is run; see `sktune serve --help`."""

    host: str
    port: int
    batch_size: int
    queue: int
    limits: Limits
    most_bytes: int
    grace: int
    token: str | None
    adapters_folder: Path | None


def serve(adapters: dict[str, Path], overrides: Sequence[str], ranks: Ranks, options: Options) -> None:
    """Answers until SIGINT, SIGTERM or SIGHUP; then finishes what is under way, and returns.

    Raises:
        UserError: for adapters that cannot be served together, and an address that cannot be used.
    """
    # Taken first: a port in use is found before a model is loaded. Nobody is let in before `listen`.
    with _bound(options.host, options.port) as listener:
        shelf = Shelf(adapters, ranks, overrides)
        counted: list[Metrics] = []
        reader = Reader(shelf, options.queue, options.batch_size, lambda items, took: counted[0].read(items, took))
        counted.append(Metrics(shelf, lambda: reader.waiting))
        app = build_app(
            shelf,
            reader,
            counted[0],
            options.limits,
            asks_token=options.token is not None,
            adapters_folder=options.adapters_folder,
        )
        config = uvicorn.Config(
            Guard(app, options.most_bytes, options.token),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=options.grace,
        )
        if options.token is None and not listener.getsockname()[0].startswith(("127.", "::1")):
            logger.warning("whoever reaches %s can ask this server: there is no token", options.host)
        reader.start()
        listener.listen(config.backlog)
        host, port = listener.getsockname()[:2]
        say(f"serving {', '.join(shelf)} at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        asyncio.run(_Server(config).serve([listener]))
        reader.stop()
        reader.join()


class _Server(uvicorn.Server):
    """uvicorn's server, for which a signal is the usual end: it is not raised once more when all is done."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self.handle_exit) for number in ends}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"--host: {host!r} is no address of this machine ({error.strerror})") from None
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise UserError(
                f"--port: {host}:{port} cannot be used ({error.strerror}); choose another one, or 0 for any"
            ) from None
        yield listener
