"""auto_LiRPA, the second opinion: its registry release (0.3) and its source releases alike. Nothing else needs it.

`library` imports it and says what its refusals are, `shims` puts back what release 0.3 misses in newer torch and numpy,
only while it runs. `modules` has it read a network, `check` compares it with our own bounds before its first use,
`margins` and `search` ask it for bounds.
"""

from hydrabench.bounds.lirpa.library import auto_lirpa, calling
from hydrabench.bounds.lirpa.margins import METHODS, lirpa_margins, require_auto_lirpa
from hydrabench.bounds.lirpa.modules import bounded_module, lower_bounds, margin_rows, perturbed
from hydrabench.bounds.lirpa.search import lirpa_alpha_margins

__all__ = [
    "METHODS",
    "auto_lirpa",
    "bounded_module",
    "calling",
    "lirpa_alpha_margins",
    "lirpa_margins",
    "lower_bounds",
    "margin_rows",
    "perturbed",
    "require_auto_lirpa",
]
