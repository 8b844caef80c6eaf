"""The product on a real cluster: programs, images, a one-node Kubernetes, the demo and the scenarios.

Layers, each used only by those after it: `progress`, `cache` < `setup`, `tools` < `images`, `cluster` < `install` < `demo`, `scenarios`.
"""
