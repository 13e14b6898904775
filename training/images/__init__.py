"""Routing networks on images ("Re-examining Routing Networks for Multi-task Learning", sections 3 and 4).

    python -m training images configs/images/fashion_mnist_routing.yaml

idx.py and cifar.py read the published files, tasks.py makes them many tasks, network.py is the convolutional network
whose layers are shared, routed or unshared, cell.py trains one, experiment.py all of them, report.py says what came
out.
"""
