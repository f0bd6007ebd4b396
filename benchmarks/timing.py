"""How time is taken: contestants in turn, in one process, by the wall clock or another sampler."""

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter, sleep

import numpy as np

WARM_UP = 0.1  # seconds that a contestant runs before the clock counts
SAMPLE = 1e-3  # seconds that one sample lasts at least: shorter calls are repeated within it
MOST_CALLS = 10_000
PAUSE = 0.03  # seconds, longer than the threads of a call go on spinning after it
LONG = 0.1  # seconds: a call that what ran before it does not matter to


@dataclass(frozen=True)
class Budget:
    """Rounds go on until there are `rounds` of them and `seconds` have passed."""

    rounds: int
    seconds: float


@dataclass(frozen=True)
class Contestant:
    """`call` is timed; `reset` runs after each call, outside the clock."""

    call: Callable[[], object]
    reset: Callable[[], object] | None = None


@dataclass(frozen=True)
class Spread:
    """The median and the 20th and 80th percentile."""

    median: float
    low: float
    high: float


def spread(samples: np.ndarray) -> Spread:
    low, median, high = np.percentile(samples, [20, 50, 80])
    return Spread(float(median), float(low), float(high))


def paired_ratio(theirs: np.ndarray, ours: np.ndarray) -> Spread:
    """How many times faster ours is, round by round: what slows a whole round cancels."""
    return spread(theirs / ours)


# Calls a contestant some times; returns seconds a call.
Sampler = Callable[[Contestant, int], float]


def by_wall_clock(contestant: Contestant, calls: int) -> float:
    call, reset = contestant.call, contestant.reset
    if reset is None:
        begin = perf_counter()
        for _ in range(calls):
            call()
        return (perf_counter() - begin) / calls
    total = 0.0
    for _ in range(calls):
        begin = perf_counter()
        call()
        total += perf_counter() - begin
        reset()
    return total / calls


def after_pause(contestant: Contestant, calls: int) -> float:
    """By the wall clock, for contestants that have threads and caches of their own: the others'
    threads have gone to sleep, and a first call, not counted if it is short, wakes its own."""
    sleep(PAUSE)
    first = by_wall_clock(contestant, 1)
    return first if first > LONG else by_wall_clock(contestant, calls)


def _warm_up(contestant: Contestant, sample: Sampler) -> int:
    """Runs the contestant for a while; returns how many calls make a sample."""
    shortest, end = math.inf, perf_counter() + WARM_UP
    while True:
        shortest = min(shortest, sample(contestant, 1))
        if perf_counter() >= end:
            return min(MOST_CALLS, max(1, math.ceil(SAMPLE / shortest)))


def in_turn(contestants: dict[str, Contestant], budget: Budget,
            sample: Sampler = by_wall_clock) -> dict[str, np.ndarray]:
    """Seconds a call, one number a round, for each contestant.

    In each round every contestant is sampled once, and every other round goes through them
    backwards (ABBA...), so that no one always runs after the same one. Python's garbage collector
    rests meanwhile.
    """
    calls = {name: _warm_up(contestant, sample) for name, contestant in contestants.items()}
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    collecting = gc.isenabled()
    gc.disable()
    try:
        done, begin = 0, perf_counter()
        while done < budget.rounds or perf_counter() - begin < budget.seconds:
            for name in order:
                samples[name].append(sample(contestants[name], calls[name]))
            order.reverse()
            done += 1
    finally:
        if collecting:
            gc.enable()
    return {name: np.array(times) for name, times in samples.items()}
