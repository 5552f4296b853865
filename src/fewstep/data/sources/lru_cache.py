"""A thread-safe cache that drops the least recently used values above a total weight."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """Pickled, it is empty. The value used last is kept however much it weighs."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[LruCache[K, V]], tuple[int]]:
        return type(self), (self._limit,)

    def get(self, key: K, make: Callable[[], V], weigh: Callable[[V], int] = lambda _: 1) -> V:
        """Returns the value of `key`, which `make` creates where it is not held."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        value = make()  # two threads may make it at once; both get the same value
        with self._lock:
            self._kept[key] = (value, weigh(value))
            while len(self._kept) > 1 and sum(weight for _, weight in self._kept.values()) > self._limit:
                self._kept.popitem(last=False)
        return value
