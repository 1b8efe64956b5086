"""Comparisons with peers that anyone can rerun: `make bench`, or `python -m bench NAME [--json] [--quick]`.

Figures depend on the machine; the ratios between rows of one run are the result. `docs/performance.md` has the method.
"""
