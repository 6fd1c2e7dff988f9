"""Our own two trainers: PPO in compiled code (`compiled`) and PPO for language models (`language`)."""
