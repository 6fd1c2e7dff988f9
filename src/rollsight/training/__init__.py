"""Our own two trainers: classic PPO (`classic`) and PPO for language models (`language`)."""
