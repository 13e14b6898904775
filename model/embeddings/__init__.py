"""The tables while they are trained: TorchRec collections, plain-torch bags, ids that have slots."""
