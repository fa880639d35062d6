"""Certificates for a network from those of the network it was made from. No torch here.

Let f be the parent, f' the child (f pruned, say), c the class that the parent's selection draws picked, p and p' the
probabilities of c under noise for f and f'. On one noisy copy a vote is *lost* if f says c and f' does not, and z is
the probability of that. Wherever f says c and the vote is not lost, f' says c:

    p' >= P(f = c and f' = c) = p - z.

So let L be a lower confidence bound of p that fails (L > p) with probability at most a, U an upper one of z that
fails (U < z) with probability at most b. Unless one of them fails, p' >= p - z >= L - U, so L - U exceeds p' with
probability at most a + b. This is the union bound: it needs no independence, so the draws of the lost votes may be
the parent's own first draws (they are, see `evaluators.reuse`), of which only c must be independent.

U is taken at fixed looks at shares of b that add up to b: unless one of the looks fails, all hold, so the best L - U
so far may be kept and the time to stop chosen in any way.

A child that would rather be certified directly where its parent abstains needs a run of its own: to choose that after
looking at the parent's votes, with the same alpha, would exceed alpha.

Source: Ugare et al., "Incremental Randomized Smoothing Certification" (ICLR 2024, arXiv:2305.19521), theorem 2, whose
z counts all disagreements; those that lose no vote for c cannot hurt, so the bound here is never weaker.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hydrabench.smoothing.confidence import clopper_pearson_lower, clopper_pearson_upper
from hydrabench.smoothing.sequential import GIVE_UP, GroupSequential, Plan, Verdict

SHARE = 1 / 2  # of alpha, for the parent's bound; the lost votes have the other half


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
            parent: lower bound of the parent's probability, at its share of alpha.
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
