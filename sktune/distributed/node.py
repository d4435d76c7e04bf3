"""The ranks of a run that are on one machine."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from sktune.distributed.ranks import Ranks
from sktune.errors import UserError


@dataclass(frozen=True)
class Node:
    """The ranks of a run that are on one machine.

    number: of the machine in the run.
    index: of this rank among those on its machine.
    size: how many those are.
    """

    number: int
    index: int
    size: int
    ranks: Ranks

    @property
    def is_first(self) -> bool:
        """Whether this rank does what one rank of a machine has to do."""
        return self.index == 0

    def on_first(self, action: Callable[[], str]) -> None:
        """Lets the first rank of each machine do something that ends with a problem in words, or with none.

        Raises:
            UserError: on all ranks, where it was a problem on one machine.
        """
        problems = self.ranks.gather(action() if self.is_first else "")
        if found := next(filter(None, problems), ""):
            raise UserError(found)


def node_of(ranks: Ranks) -> Node:
    """This rank's machine; collective."""
    hosts = ranks.gather(socket.gethostname())
    here = [rank for rank, host in enumerate(hosts) if host == hosts[ranks.rank]]
    return Node(list(dict.fromkeys(hosts)).index(hosts[ranks.rank]), here.index(ranks.rank), len(here), ranks)
