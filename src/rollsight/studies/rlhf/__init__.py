"""The language-model experiments: detoxification with PPO, its arms, its judge, and what many runs show."""
