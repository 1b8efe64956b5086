"""A market to try policies in before money is spent: what `farebox bid simulate` and the benches run. Needs numpy."""
