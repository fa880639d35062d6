"""Which weights a network keeps: scores, masks, densities."""

from hydrabench.masking.density import (
    LayerDensity,
    global_density,
    kept_count,
    layer_densities,
    prunable_layers,
    used_modules,
    used_parameters,
)
from hydrabench.masking.mask import (
    Phase,
    ScoreMask,
    attach_masks,
    bake_masks,
    make_plain,
    score_masks,
    set_phase,
    shared_masks,
)
from hydrabench.masking.scores import scaled_scores, top_k_mask

__all__ = [
    "LayerDensity",
    "Phase",
    "ScoreMask",
    "attach_masks",
    "bake_masks",
    "global_density",
    "kept_count",
    "layer_densities",
    "make_plain",
    "prunable_layers",
    "scaled_scores",
    "score_masks",
    "set_phase",
    "shared_masks",
    "top_k_mask",
    "used_modules",
    "used_parameters",
]
