"""Ends a process at one of the calls that touch a file."""

import os
import sys

import safetensors.torch


class Killer:
    """Ends this process before, after or half way through the n-th call that touches a file."""

    def __init__(self, at, counts=lambda: True, at_last=lambda: None):
        """`counts` says of a call whether it is one of those; `at_last` is called before the end."""
        self.left, self.counts, self.at_last = at, counts, at_last

    def __call__(self):
        if not self.counts():
            return
        if self.left == 0:
            self.left = -1  # what is called now is not another
            self.at_last()
            os._exit(9)
        self.left -= 1

    def arm(self):
        """For good: only in a process made for it. Python tells of every call but fsync; safetensors of none."""
        touching = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}
        sys.addaudithook(lambda event, _: self() if event in touching else None)
        fsync, save_file = os.fsync, safetensors.torch.save_file

        def synced(descriptor):
            self()
            fsync(descriptor)
            self()

        def saved(tensors, path):
            self()
            save_file(tensors, path)
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])  # its own writing was interrupted
            self()
            path.write_bytes(content)
            self()

        os.fsync, safetensors.torch.save_file = synced, saved
