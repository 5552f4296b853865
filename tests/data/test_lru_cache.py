"""The things used last are kept up to their limit."""

from __future__ import annotations

import pickle

from fewstep.data.sources.lru_cache import LruCache


def test_the_one_used_longest_ago_goes_when_the_weight_is_too_much():
    made: list[str] = []

    def ask(kept: LruCache[str, str], key: str) -> None:
        assert kept.get(key, lambda: made.append(key) or key * 2, len) == key * 2

    kept: LruCache[str, str] = LruCache(8)
    for key in ("a", "b", "a", "ccc", "a", "b"):  # weights 2, 2, 6: b goes when ccc comes, ccc when b does
        ask(kept, key)
    assert made == ["a", "b", "ccc", "b"]
    ask(kept, "d" * 9)
    ask(kept, "d" * 9)  # heavier than the limit, and still kept while it is the last
    assert made[-1] == "d" * 9
    assert made.count("d" * 9) == 1


def test_another_process_begins_with_none():
    kept: LruCache[str, int] = LruCache(3)
    kept.get("a", lambda: 1)
    assert pickle.loads(pickle.dumps(kept)).get("a", lambda: 2) == 2
