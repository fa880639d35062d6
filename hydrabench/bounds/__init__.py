"""Sound bounds of a network's margins over an L-infinity or L2 ball.

From a method to its equation: each method has a file of its name, `interval` is the one way forward, `backward` the one
way back, and every operation in `program/` says its own box, transpose and lines (`relaxations`).

program/          a network as operations: read from its code, folded, without dead channels; `prepared` keeps one
specification     what is bounded: margins over a `ball` around images
ibp, crown        ibp and mixtures to train with; crown-ibp and crown
symbolic          symbolic intervals; `cascade` tries one method after the other
intermediate      bounds of unstable neurons by CROWN
neurons, patches  which neurons get a pass of their own, and rows that are as large as their receptive field
sound, rounding   bounds that hold in spite of rounding, and how far it can lift others; `outward` has the arithmetic
alpha, slopes     crown with slopes optimised for each image and margin
exact/            branch and bound: verified, or broken by an adversarial example
lirpa/            auto_LiRPA, a second opinion
costs, progress   how much work bounds may take, and how far they are
initialization    weights from which a deep network can be trained with interval bounds; `fast_ibp` keeps boxes small
kernels, box      sweeps over coefficients; a box around a value
transposed        transposed convolutions by ordinary ones, where that is faster
"""

from hydrabench.bounds.alpha import Search, alpha_crown_margins
from hydrabench.bounds.cascade import Proofs, cascade, cascade_margins
from hydrabench.bounds.costs import image_operations, search_operations
from hydrabench.bounds.crown import crown_ibp_margins, crown_margins
from hydrabench.bounds.fast_ibp import TrainingBounds, regularizer, training_bounds
from hydrabench.bounds.ibp import MarginBound, class_margins, interval_margins
from hydrabench.bounds.initialization import keep_widths
from hydrabench.bounds.interval import interval_bounds
from hydrabench.bounds.lirpa import bounded_module, lirpa_alpha_margins, lirpa_margins, require_auto_lirpa
from hydrabench.bounds.prepared import Prepared, prepared
from hydrabench.bounds.program.program import Node, Program, program_of, read
from hydrabench.bounds.progress import Moment, watched
from hydrabench.bounds.rounding import FACTORS, rounding_bound
from hydrabench.bounds.sound import deployed_margins, sound_margins
from hydrabench.bounds.symbolic import symbolic_class_margins, symbolic_margins

BOUNDS: dict[str, MarginBound] = {
    "ibp": interval_margins,
    "symbolic": symbolic_margins,
    "crown-ibp": crown_ibp_margins,
    "crown": crown_margins,
    "cascade": cascade_margins,
}

__all__ = [
    "BOUNDS",
    "FACTORS",
    "MarginBound",
    "Moment",
    "Node",
    "Prepared",
    "Program",
    "Proofs",
    "Search",
    "TrainingBounds",
    "alpha_crown_margins",
    "bounded_module",
    "cascade",
    "cascade_margins",
    "class_margins",
    "crown_ibp_margins",
    "crown_margins",
    "deployed_margins",
    "image_operations",
    "interval_bounds",
    "interval_margins",
    "keep_widths",
    "lirpa_alpha_margins",
    "lirpa_margins",
    "prepared",
    "program_of",
    "read",
    "regularizer",
    "require_auto_lirpa",
    "rounding_bound",
    "search_operations",
    "sound_margins",
    "symbolic_class_margins",
    "symbolic_margins",
    "training_bounds",
    "watched",
]
