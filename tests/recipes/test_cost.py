"""What a block costs is its own, whatever the process did before."""

import time

import numpy as np

from difftilt.recipes.tables.cost import EVERY, Cost

MB = 1_000_000


def held(megabytes: int) -> None:
    """Write to so much memory, hold it for a while, and let it go."""
    block = np.ones(megabytes * MB // 8)
    time.sleep(20 * EVERY)
    del block


def test_a_small_block_after_a_large_one_shows_its_own_memory_and_time():
    held(240)
    with Cost() as cost:
        held(80)
        before = cost.seconds
    assert 60 < cost.peak_mb < 120
    assert 20 * EVERY <= before <= cost.seconds < 60
    assert cost.seconds == cost.seconds


def test_memory_that_was_freed_but_kept_by_the_process_counts():
    np.ones(30 * MB // 8)  # from here on the allocator serves arrays of this size from its heap
    below = [np.ones(MB // 8) for _ in range(240)]
    above = np.ones(MB // 8)
    below.clear()
    with Cost() as cost:
        held(20)
    assert 15 < cost.peak_mb < 60
    assert above.sum() == MB // 8


def test_a_block_that_fails_is_left_as_any_other():
    cost = Cost()
    try:
        with cost:
            raise ValueError
    except ValueError:
        pass
    assert cost.seconds < 60 and cost.peak_mb >= 0
