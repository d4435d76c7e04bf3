"""How what trains is updated and divided among ranks: the optimizer's groups, DeepSpeed's configuration."""
