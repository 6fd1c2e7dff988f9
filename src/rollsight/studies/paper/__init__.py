"""The paper's study: its arms, one run of an arm, and what many runs show."""
