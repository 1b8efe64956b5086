"""Which seller, which tier, what limit: orders the offers that could answer a call. It never decides what may be spent.

Caps and budgets are integers that the spending path checks whatever is chosen here; a wrong estimate loses utility,
never the budget. Importing this package loads neither numpy nor LightGBM: the rule, which is the default, needs none.
"""
