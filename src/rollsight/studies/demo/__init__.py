"""One story, told on real runs: a planted fault, what the doctor says, which records taught the policy, without them."""
