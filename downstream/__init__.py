"""Weights to scores: label-efficiency curves and probes of pre-trained networks against scratch.

    downstream.evaluate.evaluate(runs, suite, out)      what `ssl3d evaluate` calls
"""
