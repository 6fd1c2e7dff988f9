"""How often the doctor is right: faults planted in training runs, and healthy runs beside them."""
