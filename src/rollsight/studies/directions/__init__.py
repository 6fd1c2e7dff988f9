"""Which way do the arms go? Their updates from one round, beside the gradient on records that none of them has seen."""
