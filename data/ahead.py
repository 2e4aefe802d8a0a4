"""Results that threads make while the caller works on those before."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def ahead(
  function: Callable[[Any], Any],
  items: Iterable,
  *,
  count: int,
  threads: int = 1,
) -> Iterator[Any]:
  """Yields function(item) of every item, in order.

  What a call raises is raised in its turn: nothing later is yielded.

  Args:
    function: called by the threads.
    items: taken by the caller's thread.
    count: how many results are made, or waited for, in advance.
    threads: how many calls there are at a time.
  """
  pool, waiting = ThreadPoolExecutor(threads, 'ahead'), deque()
  try:
    for item in items:
      waiting.append(pool.submit(function, item))
      if len(waiting) > count:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)
