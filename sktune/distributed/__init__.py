"""Several processes: ranks, where loaded weights go, engines, DeepSpeed's configuration."""
