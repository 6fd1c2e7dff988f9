"""Which way do the arms go? Their updates from one round, against the gradient on records that none has seen."""
