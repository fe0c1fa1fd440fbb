"""Work done ahead in threads, with its results in order."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def in_order(pool: ThreadPoolExecutor, work: Callable[[Any], Any], items: Iterable, ahead: int) -> Iterator:
    """Results in the order of the items; at most `ahead` of them exist at a time."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
