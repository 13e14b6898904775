"""One step of training: look-ups, optimizers, routing, slots."""
