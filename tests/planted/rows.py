"""Rows with a known truth: clusters of very unequal sizes, skewed values, effects shared within a cluster."""

import numpy as np
import pandas as pd


def clustered_rows(generator, clusters, mean_log_size=1.0):
    """Language-model rows: lognormal cluster sizes, gamma losses a token."""
    sizes = np.maximum(1, generator.lognormal(mean_log_size, 0.8, clusters).astype(int))
    cluster = np.repeat(np.arange(clusters), sizes)
    tokens = generator.integers(20, 400, len(cluster))
    nll = tokens * generator.gamma(20, 0.15, len(cluster))
    return pd.DataFrame({"item": np.arange(len(cluster)), "cluster": cluster, "nll": nll, "tokens": tokens})


def compared(generator, clusters, effect, skewed, cluster_sd=0.02, row_sd=0.02):
    """Condition, baseline and truth, for ``calibrate``; the relative change is the same in expectation everywhere."""
    baseline = clustered_rows(generator, clusters)
    shared = generator.gamma(1, 1, clusters) - 1 if skewed else generator.normal(size=clusters)
    change = effect + cluster_sd * shared[baseline["cluster"]] + row_sd * generator.normal(size=len(baseline))
    return baseline.assign(nll=baseline["nll"] * (1 + change)), baseline, effect
