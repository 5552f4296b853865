"""Several processes that know of one another, as torchrun starts them, forked from one that has torch imported."""

import os
import socket

import torch

from warm_command import FORK, start_server


def run_ranks(size, target, *arguments):
    """`target(*arguments)` in `size` processes of one thread each; fails if one of them does."""
    assert exit_codes(size, target, *arguments) == [0] * size


def exit_codes(size, target, *arguments):
    """As `run_ranks`, and how each of them ended."""
    start_server()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ranks = [FORK.Process(target=_rank, args=(rank, size, port, target, arguments)) for rank in range(size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(300)
        if rank.is_alive():
            for other in ranks:
                other.kill()
            raise TimeoutError(f"{target.__name__} in {size} processes")
    return [rank.exitcode for rank in ranks]


def read_state(file):
    """Returns the tensors of a checkpoint by their names, whichever processes wrote them."""
    from fewstep.train.soundness import open_tensors

    opened = open_tensors(file)
    return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping


def _rank(rank, size, port, target, arguments):
    from fewstep.parallel.world import join_world

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    with join_world():
        target(*arguments)
