"""Online scoring over HTTP. Imports model's serving half alone: never training, never torchrec."""
