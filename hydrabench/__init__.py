"""hydrabench: train, prune, attack, certify and compare robust image classifiers."""

__version__ = "0.1.0"
