"""What goes in a batch: query clusters, margin bins, and the plan of batches."""
from .bins import bin_offsets, bins_of
from .clusters import QueryClusters, default_k
from .plan import Batch, BatchPlan

__all__ = ['Batch', 'BatchPlan', 'QueryClusters', 'bin_offsets', 'bins_of', 'default_k']
