"""Which samples make a step: pure functions of seed, epoch, data and budgets."""
