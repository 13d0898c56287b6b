"""The two halves of compare_estimators.py, and the cells that comparisons are made of."""
