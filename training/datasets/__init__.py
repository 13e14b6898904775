"""Feed logs to begin with: the simulator, KuaiRand, Census."""
