"""Scored pairs as plain tuples."""
import numpy as np


def rows(pairs):
    """Sorted (qid, positive, negative, margin) of every pair."""
    query = np.repeat(np.arange(pairs.n_queries), np.diff(pairs.indptr))
    return sorted((pairs.qids[q], pairs.docnos[p], pairs.docnos[n], float(m))
                  for q, p, n, m in zip(query, pairs.pos, pairs.neg, pairs.margin))


def same(pairs, other):
    """Whether two hold the same pairs with the same margins."""
    mine, theirs = rows(pairs), rows(other)
    return [row[:3] for row in mine] == [row[:3] for row in theirs] and np.allclose(
        [row[3] for row in mine], [row[3] for row in theirs], rtol=1e-6, atol=1e-6)
