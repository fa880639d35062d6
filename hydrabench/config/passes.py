"""Costs of computing, counted in forward passes.

A gradient with respect to the image costs as much again as the forward pass, one with respect to image and parameters
twice as much again (Kaplan et al., arXiv:2001.08361, section 2.1, count the same way).
"""

INPUT_GRADIENT = 2  # one pass with its gradient to the image
TRAINING = 3  # one pass with its gradient to image and parameters
BOXES = 2  # interval bounds: centers and widths
