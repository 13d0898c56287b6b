"""Comparisons: of estimators, by their gradients and by what they end in, and of parts."""
