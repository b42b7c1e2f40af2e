"""A piece of work for each of many items, by as many threads as there are workers to ask."""

import threading
from collections.abc import Callable, Sequence


def for_each(items: Sequence[int], work: Callable[[int], None], *, num_threads: int) -> None:
    """Call `work` with each item, which are begun in order; after an exception no further one is begun.

    Raises:
        BaseException: Of those that `work` raised, the one at the first item.
    """
    queue = iter(items)
    lock = threading.Lock()
    errors: dict[int, BaseException] = {}

    def go_on() -> None:
        while not errors:
            with lock:
                item = next(queue, None)
            if item is None:
                return
            try:
                work(item)
            except BaseException as error:
                errors[item] = error

    threads = [threading.Thread(target=go_on) for _ in range(min(num_threads, len(items)) - 1)]
    for thread in threads:
        thread.start()
    go_on()
    for thread in threads:
        thread.join()
    for item in items:
        if item in errors:
            raise errors[item]
