"""A runner that counts, and needs no library."""

import os
import time

from fewstep.errors import UserError


class Counting:
    """Adds a number to each job's, after a while, and notes in a file that it does."""

    plan = "to count"

    def __init__(self, number, notes, helpers=None):
        self._number, self._notes, self._helpers = number, notes, helpers

    def run(self, job):
        with open(self._notes, "a") as notes:
            notes.write(f"{os.getpid()} {job}\n")
        time.sleep(0.2)
        if job < 0:
            raise UserError(f"{job} is below 0")
        if self._helpers:
            return [None if each is None else each + self._number for each in self._helpers.run_in_order([job, job])]
        return job + self._number


class Doubling:
    def run(self, job):
        return 2 * job


class Refusing:
    def __init__(self, *_):
        raise UserError("it does not want to")
