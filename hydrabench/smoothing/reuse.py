"""Certificates for a network from those of the network it was made from. No torch here.

Let f be the parent, f' the child (f pruned, say), c the class that the parent's selection draws picked, p and p' the
probabilities of c under noise for f and f'. On one noisy copy a vote is *lost* if f says c and f' does not, and z is
the probability of that. Wherever f says c and the vote is not lost, f' says c:

    p' >= P(f = c and f' = c) = p - z.

So let L be a lower confidence bound of p that fails (L > p) with probability at most a, U an upper one of z that
fails (U < z) with probability at most b. Unless one of them fails, p' >= p - z >= L - U, so L - U exceeds p' with
probability at most a + b. This is the union bound: it needs no independence, so the draws of the lost votes may be
the parent's own first draws (they are, see `evaluators.reused`), of which only c must be independent.

Looking repeatedly. U is taken at fixed looks at shares of b that add up to b: unless one of the looks fails, all
hold, so the best L - U so far may be kept and the time to stop chosen in any way. The same holds for L: whatever made
the parent stop, its bounds of all looks hold together at any level a, and are recomputed from the stored counts.

A third share d pays for certifying the child directly as well: the direct bound fails with probability at most d
whether anyone looks at it or not. All three hold together with probability 1 - a - b - d, so the better
certificate may be taken, and which images are certified directly may depend on everything seen.
Without that share it may not: "if the parent abstained, certify directly with all of alpha" chooses by an event
that depends on the data. That branch fails with probability at most alpha P(parent abstains), but the other
with up to a + b in all, not (a + b) P(it does not abstain): if p is 1/2, reuse is tried exactly when L fails.
The sum can exceed alpha, and tests/smoothing/test_reuse.py has an example.

Source: Ugare et al., "Incremental Randomized Smoothing Certification" (ICLR 2024, arXiv:2305.19521), theorem 2, whose
z counts all disagreements; those that lose no vote for c cannot hurt, so the bound here is never weaker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from hydrabench.smoothing.confidence import clopper_pearson_lower, clopper_pearson_upper
from hydrabench.smoothing.sequential import GIVE_UP, GroupSequential, Plan, Rule, Verdict


class Shares(NamedTuple):
    """The shares of the failure probability: the parent's bound, the lost votes, direct certification."""

    parent: float
    lost: float
    direct: float


def shares(alpha: float, *, direct: bool) -> Shares:
    """Split `alpha`, in (0, 1), evenly: in two, or in three if images may be certified directly as well."""
    return Shares(alpha / 3, alpha / 3, alpha / 3) if direct else Shares(alpha / 2, alpha / 2, 0.0)


def parent_bound(rule: Rule, looks: Sequence[Sequence[int]]) -> float:
    """Lower bound of the parent's probability at another level than it was certified with.

    Args:
        rule: the parent's rule at that level; its slack must be 0, because it is taken off once, by `LostVotes`.
        looks: (draws, count) of each look of the parent, as its ledger has them.
    Returns: the bound, in [0, 1); it exceeds the truth with probability at most the rule's alpha.
    """
    best = 0.0
    for n, count in looks:
        best = rule.look(n, count, best).p_lower
    return best


@dataclass(frozen=True)
class LostVotes:
    """Stopping rule for counting lost votes, and the bound that the child may claim.

    plan: samples is the most shared draws, alpha the share of the lost votes, radii those asked for of the child.
    Looks and their shares are those of `GroupSequential`. Draws stop when each radius that the parent's bound
    certifies is certified for the child, too, or given up; giving up only lowers the claim.
    """

    plan: Plan

    @cached_property
    def looks(self) -> GroupSequential:
        """The looks and their shares of alpha."""
        return GroupSequential(self.plan)

    @property
    def first(self) -> int:
        """Draws at the first look."""
        return self.looks.first

    def bound(self, n: int, lost: int, parent: float) -> float:
        """Lower bound of the child's probability by one look alone; may be negative.

        Args:
            n: shared draws, one of the looks. lost: votes lost among them, in [0, n].
            parent: lower bound of the parent's probability, see `parent_bound`.
        """
        share = self.looks.alphas[self.looks.looks.index(n)]
        return parent - clopper_pearson_upper(lost, n, alpha=share) - self.plan.slack

    def look(self, n: int, lost: int, *, parent: float, best: float) -> Verdict:
        """Judge `lost` of `n` votes; `best` is the bound of the look before, 0 at first. Args: as for `bound`."""
        best = max(best, self.bound(n, lost, parent))
        if n == self.plan.samples:
            return Verdict(best, None)
        likely = clopper_pearson_lower(lost, n, alpha=GIVE_UP / (len(self.looks.looks) - 1))
        settled = self.plan.certified(best) >= self.plan.certified(parent - likely - self.plan.slack)
        return Verdict(best, None if settled else self.looks.looks[self.looks.looks.index(n) + 1])

    def falls_short(self, of_parent: float, best: float) -> bool:
        """Return whether the child's `best` certifies fewer of the radii than the parent's ledger, or that none.

        of_parent: the bound that the ledger states, at the parent's own level and with its slack taken off: a parent
        that stopped early certifies hardly more than its radii, and would lose them at the smaller level.
        """
        return of_parent <= 0.5 or self.plan.certified(of_parent) > self.plan.certified(best)
