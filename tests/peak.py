"""How much memory a process takes, measured while it does something."""

import threading
import time
from pathlib import Path


class Peak:
    """The most anonymous memory that this process takes beyond what it had: what is its own, files that are mapped
    aside."""

    def __enter__(self):
        self._before, self._going = self._read(), True
        self.most = 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._going = False
        self._thread.join()

    def _watch(self):
        while self._going:
            self.most = max(self.most, self._read() - self._before)
            time.sleep(0.002)

    def _read(self):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
