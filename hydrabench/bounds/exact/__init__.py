"""Complete verification: branch and bound over the phases of neurons.

A subproblem is a margin of one image over the part of its ball in which some neurons keep to one side of a point each.
Its lower bound is CROWN's, with slopes and multipliers of these constraints that are optimised; what is not proved is
cut in two.

search      `decide`: verdict, best lower bound, adversarial example, number of subproblems
places      all values that can be cut as one vector, and the boxes around them
splits      constraints of subproblems, and their multipliers
walk        one pass backward for many subproblems: slopes and multipliers optimised, then rounded outward
rounding    what rounding can do to such a pass
branching   which neuron is cut
points      adversarial examples from the points where bounds are lowest
queue       subproblems by their bounds, the best ones on the disk if there are many
milp        `decide_by_milp`: the same decisions by mixed-integer programming, whose program `formulation` writes
Source: Wang et al. (2021), arXiv:2103.06624 (beta-CROWN); Bunel et al. (2020), arXiv:1909.06588 (branch and bound).
"""

from hydrabench.bounds.exact.milp import decide_by_milp
from hydrabench.bounds.exact.root import pose_as_stored
from hydrabench.bounds.exact.search import Decision, Limits, decide

__all__ = ["Decision", "Limits", "decide", "decide_by_milp", "pose_as_stored"]
