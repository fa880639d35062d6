"""Sound bounds of a network's margins over an L-infinity or L2 ball.

`graph` reads a network into a program of `operations`, `prepared` once for many batches and, by `compaction`, without
the channels that pruning has cut off; `interval` sends boxes forward through it, `crown` linear functions backward. A
`problem` is a program, a `ball` and the margins to bound. `symbolic` and `full` bound neurons by functions of their
own, which `backward` carries to the input and `rows` keeps short. `margins` has a function for each method, `cascade`
tries one after the other. `alpha` optimises the slopes of CROWN, which `slopes` holds. `lirpa` asks auto_LiRPA for a
second opinion. `rounding` says how far rounding can lift a bound, `sound` has bounds that hold in spite of it, and of
what the network rounds itself. `costs` says beforehand how long bounds may take, `watching` meanwhile how far they are.
`initialization` draws weights from which a deep network can be trained with interval bounds.
"""

from hydrabench.bounds.alpha import Search, alpha_crown_margins
from hydrabench.bounds.cascade import Proofs, cascade, cascade_margins
from hydrabench.bounds.costs import image_seconds, search_seconds
from hydrabench.bounds.initialization import keep_widths
from hydrabench.bounds.interval import interval_bounds
from hydrabench.bounds.lirpa import bounded_module, lirpa_alpha_margins, lirpa_margins, require_auto_lirpa
from hydrabench.bounds.methods import (
    MarginBound,
    class_margins,
    crown_ibp_margins,
    crown_margins,
    interval_margins,
    symbolic_margins,
)
from hydrabench.bounds.prepared import Prepared, prepared
from hydrabench.bounds.program.program import Node, Program, program_of, read
from hydrabench.bounds.progress import Moment, watched
from hydrabench.bounds.rounding import FACTORS, rounding_bound
from hydrabench.bounds.sound import deployed_margins, sound_margins
from hydrabench.bounds.symbolic import symbolic_class_margins

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
    "alpha_crown_margins",
    "bounded_module",
    "cascade",
    "cascade_margins",
    "class_margins",
    "crown_ibp_margins",
    "crown_margins",
    "deployed_margins",
    "image_seconds",
    "interval_bounds",
    "interval_margins",
    "keep_widths",
    "lirpa_alpha_margins",
    "lirpa_margins",
    "prepared",
    "program_of",
    "read",
    "require_auto_lirpa",
    "rounding_bound",
    "search_seconds",
    "sound_margins",
    "symbolic_class_margins",
    "symbolic_margins",
    "watched",
]
