"""Sound bounds of a network's margins over an L-infinity ball.

`graph` reads a network into a program of `operations`; `interval` sends boxes forward through it,
`crown` linear functions backward; `margins` puts them together. `symbolic` bounds every neuron by functions of the
input, kept short by `rows`. `lirpa` asks auto_LiRPA instead.
"""

from hydrabench.bounds.graph import Node, Program, program_of, read
from hydrabench.bounds.interval import interval_bounds
from hydrabench.bounds.lirpa import lirpa_margins
from hydrabench.bounds.margins import MarginBound, class_margins, crown_ibp_margins, interval_margins
from hydrabench.bounds.symbolic import symbolic_class_margins

BOUNDS: dict[str, MarginBound] = {"ibp": interval_margins, "crown-ibp": crown_ibp_margins}

__all__ = [
    "BOUNDS",
    "MarginBound",
    "Node",
    "Program",
    "class_margins",
    "crown_ibp_margins",
    "interval_bounds",
    "interval_margins",
    "lirpa_margins",
    "program_of",
    "read",
    "symbolic_class_margins",
]
