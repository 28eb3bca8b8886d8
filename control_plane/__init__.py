"""The control plane: stores experiments, streams deployments to agents, counts what happened, decides."""
