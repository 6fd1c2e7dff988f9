"""Our own two trainers: classic PPO in JAX (the modules here) and PPO for language models (`language`)."""
