"""One story on real runs: a planted fault, what the doctor says, which records taught it, and training without them."""
