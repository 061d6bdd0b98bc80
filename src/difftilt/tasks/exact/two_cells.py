"""Two cells of states: what contrastive labels learn, by enumeration of sets of K and from draws.

Each state lies in one of two equally likely cells and has ``log r = beta`` with chance a (first
cell) or b (second), else 0. What is to be learned is the gap of ``log h`` between the cells. With
un-normalised labels it is the optimum for every K; with labels normalised within each set it is
not, and the rarer the reward the worse.
"""

import itertools
import math

import torch
from torch import Tensor

from difftilt.objectives.contrastive import contrastive
from difftilt.objectives.ends import EndScores

UPDATES, SETS, RATE = 600, 512, 0.03


class TwoCells:
    """The expected contrastive loss over all sets of K states.

    Sets that differ by the order of their rows are enumerated once.

    Arguments:
        beta: log r of a state that is paid, nats.
        a: chance to be paid in the first cell.
        b: chance in the second.
        count: K, at least 2.
    """

    def __init__(self, beta: float, a: float, b: float, count: int) -> None:
        self.beta, self.chances, self.count = beta, torch.tensor([a, b]), count
        self.exact = math.log1p(b * math.expm1(beta)) - math.log1p(a * math.expm1(beta))
        self.log_z = math.log1p(0.5 * (a + b) * math.expm1(beta))
        cells, log_r, probability = [], [], []
        for first, i, j in _outcomes(count):
            second = count - first
            cells.append([0] * first + [1] * second)
            paid = [[1] * k + [0] * (n - k) for n, k in ((first, i), (second, j))]
            log_r.append([beta * hit for hit in paid[0] + paid[1]])
            chance = math.comb(count, first) * 0.5**count
            for size, hits, p in ((first, i, a), (second, j, b)):
                chance *= math.comb(size, hits) * p**hits * (1 - p) ** (size - hits)
            probability.append(chance)
        self.cell = torch.tensor(cells).flatten()
        self.log_r = torch.tensor(log_r, dtype=torch.float64).flatten()
        self.group = torch.arange(len(cells)).repeat_interleave(count)
        self.probability = torch.tensor(probability, dtype=torch.float64)[self.group]

    def slope(self, gap: float, self_normalised: bool) -> float:
        """Derivative of the expected loss by the gap of f between the cells."""
        f = torch.tensor(gap, dtype=torch.float64, requires_grad=True)
        log_h = torch.where(self.cell == 1, f, 0.0)
        scores = EndScores(
            self.log_r, self.log_r, torch.full_like(self.log_r, self.log_z), self.group, log_h
        )
        loss = (self.probability * contrastive(scores, self_normalised)).sum()
        (slope,) = torch.autograd.grad(loss, f)
        return float(slope)

    def optimum(self, self_normalised: bool) -> float:
        """The gap at which the expected loss, which is convex, is least."""
        low, high = -8.0, 8.0
        for _ in range(30):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if self.slope(middle, self_normalised) > 0 else (middle, high)
        return 0.5 * (low + high)

    def learned(self, self_normalised: bool, seed: int = 0) -> float:
        """The gap that a table of two numbers learns from draws of a few sets at a time.

        Arguments:
            self_normalised: the labels.
            seed: of the draws.
        """
        generator = torch.Generator().manual_seed(seed)
        table = torch.zeros(2, requires_grad=True)
        optimiser = torch.optim.Adam([table], lr=RATE)
        kept = []
        for _ in range(UPDATES):
            scores = self._drawn(table, generator)
            loss = contrastive(scores, self_normalised).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            kept.append(table.detach().clone())
        # Its later half, averaged: the draws of one update are far too few.
        low, high = torch.stack(kept[UPDATES // 2 :]).mean(0).tolist()
        return high - low

    def _drawn(self, table: Tensor, generator: torch.Generator) -> EndScores:
        """Sets of K random states, with a table's log h."""
        rows = SETS * self.count
        cell = torch.randint(2, (rows,), generator=generator)
        paid = torch.rand(rows, generator=generator) < self.chances[cell]
        log_r = self.beta * paid.to(table)
        group = torch.arange(SETS).repeat_interleave(self.count)
        return EndScores(log_r, log_r, torch.full_like(log_r, self.log_z), group, table[cell])


def _outcomes(count: int) -> list[tuple[int, int, int]]:
    """How many of K states lie in the first cell, and how many of each cell are paid."""
    return [
        (first, i, j)
        for first in range(count + 1)
        for i, j in itertools.product(range(first + 1), range(count - first + 1))
    ]


CASES: list[tuple[float, float, float]] = [(3.0, 0.5, 0.05), (10.0, 0.05, 0.005)]


def label_rows(counts: tuple[int, ...] = (2, 16), seed: int = 0) -> list[dict[str, float | int]]:
    """What each kind of labels learns of the gap in ``CASES``, nats: at its optimum, and drawn."""
    rows: list[dict[str, float | int]] = []
    for beta, a, b in CASES:
        for count in counts:
            cells = TwoCells(beta, a, b, count)
            found = (cells.optimum(False), cells.optimum(True), cells.exact)
            own, paper, exact = (abs(gap) for gap in found)
            drawn = [abs(cells.learned(normalised, seed)) for normalised in (False, True)]
            rows.append(
                {"beta": beta, "a": a, "b": b, "contrast": count}
                | {"exact": exact, "unnormalised": own, "self_normalised": paper}
                | {"learned": drawn[0], "learned_self_normalised": drawn[1]}
            )
    return rows
