"""Figures of what goes into training and what comes out of it; each function gives a matplotlib figure.

Nothing here touches matplotlib's global state: `figure.savefig('name.png')` writes a file, a notebook shows the figure.
"""
from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .sampling import BatchPlan, QueryClusters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CUTOFFS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def _figure(n_axes: int = 1, width: float = 6.4, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'pyterrier-tasb[plots]'") from error

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:
            out = io.BytesIO()
            self.savefig(out, format='png')
            return out.getvalue()

    figure = NotebookFigure(figsize=(width * n_axes, height), layout='constrained', dpi=120)
    axes = np.atleast_1d(figure.subplots(1, n_axes)).tolist()
    for ax in axes:
        ax.spines[['top', 'right']].set_visible(False)
    return figure, axes


def _legend(ax: Axes, **options: Any) -> None:
    if ax.get_legend_handles_labels()[0]:   # matplotlib warns where there is nothing to label
        ax.legend(frameon=False, **options)


def recall(results: Mapping[str, pd.DataFrame], qrels: pd.DataFrame, cutoffs: Sequence[int] = CUTOFFS) -> Figure:
    """Recall at every cutoff, one line for each system.

    Args:
        results: Name → its results (qid, docno, score).
        qrels: qid, docno, label.
        cutoffs: Ranks to cut at.
    """
    import ir_measures

    figure, (ax,) = _figure(width=7.2, height=4.6)
    measures = {k: ir_measures.R @ int(k) for k in cutoffs}
    evaluator = ir_measures.evaluator(list(measures.values()), qrels.rename(columns={
        'qid': 'query_id', 'docno': 'doc_id', 'label': 'relevance'}))
    for at, (name, run) in enumerate(results.items()):
        values = evaluator.calc_aggregate(run.rename(columns={'qid': 'query_id', 'docno': 'doc_id'})[
            ['query_id', 'doc_id', 'score']])
        ax.plot(cutoffs, [values[measures[k]] for k in cutoffs], marker='o', markersize=3, linewidth=1.4,
                linestyle=('-', '--', '-.', ':')[at // 10 % 4], label=name)
    ax.set_xscale('log')
    ax.set_xticks(list(cutoffs), [str(k) for k in cutoffs])
    ax.minorticks_off()
    ax.set(xlabel='cutoff', ylabel='recall', ylim=(None, 1.005))
    ax.grid(alpha=.3)
    _legend(ax, fontsize='small')
    return figure


def margins(plan: BatchPlan, n_batches: int = 200, bins: int = 40) -> Figure:
    """Teacher margins of all pairs and of the pairs that a plan draws, each relative to its query's own range.

    Args:
        plan: The plan; a balanced one draws every stretch of a query's range about equally often.
        n_batches: Batches drawn.
        bins: Bars of the histogram.
    """
    pairs = plan.pairs
    low = np.asarray(pairs.margin[pairs.indptr[:-1]], dtype=np.float64)
    high = np.asarray(pairs.margin[np.asarray(pairs.indptr[1:]) - 1], dtype=np.float64)
    rows = np.arange(0, len(pairs.margin), max(1, len(pairs.margin) // 1_000_000))
    query = np.searchsorted(pairs.indptr, rows, side='right') - 1
    batches = [plan[step] for step in range(n_batches)]
    drawn_query, drawn = (np.concatenate([getattr(batch, name) for batch in batches]) for name in ('query', 'margin'))

    def relative(margin: np.ndarray, of: np.ndarray) -> np.ndarray:
        width = high[of] - low[of]
        some = width > 0   # a query with one margin has no range to be in
        return (margin[some] - low[of][some]) / width[some]

    every = np.asarray(pairs.margin[rows], dtype=np.float64)
    figure, (left, right) = _figure(2)
    _histograms(left, np.histogram_bin_edges(every, bins), every, drawn, 'teacher margin')
    _histograms(right, np.linspace(0, 1, bins + 1), relative(every, query), relative(drawn, drawn_query),
                "margin within its query's range")
    _legend(left)
    return figure


def _histograms(ax: Axes, edges: np.ndarray, every: np.ndarray, drawn: np.ndarray, label: str) -> None:
    for values, style in ((every, {'alpha': .5, 'label': 'all pairs'}),
                          (drawn, {'histtype': 'step', 'linewidth': 1.6, 'label': 'drawn for batches'})):
        if len(values):
            ax.hist(values, edges, density=True, **style)
    ax.set(xlabel=label, ylabel='density')


def learning_curve(record: Mapping[str, Any]) -> Figure:
    """Loss and, where there was validation, its measure against steps; at step 0 that of the untrained encoder.

    Args:
        record: `TasBalanced.record` or `LateInteraction.record` after a fit.
    """
    history = pd.DataFrame(record['history'])
    measure = record['training']['measure']
    validated = history.dropna(subset=[measure]) if measure in history else history.iloc[:0]
    if len(validated) and 'untrained_value' in record:
        validated = pd.concat([pd.DataFrame({'step': [0], measure: [record['untrained_value']]}), validated])
    figure, axes = _figure(2 if len(validated) else 1)
    logged = history.dropna(subset=['loss']) if 'loss' in history else history.iloc[:0]
    for name in ('loss', 'pairwise', 'in_batch'):
        if name in logged:
            axes[0].plot(logged['step'], logged[name], label=name.replace('_', '-'))
    axes[0].set(xlabel='step', ylabel='loss')
    _legend(axes[0])
    if len(validated):
        axes[1].plot(validated['step'], validated[measure], marker='o')
        if record.get('best_step'):
            axes[1].axvline(record['best_step'], color='grey', linestyle=':', label='weights kept')
            _legend(axes[1])
        axes[1].set(xlabel='step', ylabel=f'validation {measure}')
    return figure


def clusters(query_clusters: QueryClusters, vectors: np.ndarray, queries: Sequence[str], *, n_labels: int = 12,
             seed: int = 0) -> Figure:
    """A map of the training queries, coloured by cluster, the largest clusters with their most telling words.

    Args:
        query_clusters: The clusters.
        vectors: float[Q, D], the vectors that were clustered.
        queries: Q query texts.
        n_labels: Clusters that get a label.
        seed: Of the projection.
    """
    from sklearn.decomposition import PCA

    points = PCA(2, random_state=seed).fit_transform(np.asarray(vectors, dtype=np.float32))
    figure, (ax,) = _figure(width=9, height=6.5)
    assigned = query_clusters.assignment >= 0
    ax.scatter(*points[assigned].T, c=query_clusters.assignment[assigned] % 20, cmap='tab20', s=5, alpha=.55,
               linewidths=0)
    words = cluster_words(query_clusters, queries)
    largest = np.argsort(-query_clusters.sizes, kind='stable')[:min(n_labels, (query_clusters.sizes > 0).sum())]
    centres = np.array([np.median(points[query_clusters.members(int(cluster))], axis=0) for cluster in largest])
    for cluster, at in zip(largest, _apart(centres, np.ptp(points[:, 1]) / 28), strict=True):
        ax.annotate(', '.join(words[cluster]), at, ha='center', fontsize=8,
                    bbox={'facecolor': 'white', 'alpha': .75, 'edgecolor': 'none', 'pad': 1})
    ax.set(xticks=[], yticks=[], title=f'{query_clusters.n_clusters} clusters of {int(assigned.sum()):,} queries')
    ax.spines[:].set_visible(False)
    return figure


def _apart(points: np.ndarray, least: float) -> np.ndarray:
    """The points, moved upwards where one would be less than `least` above the one below it."""
    points = points.copy()
    order = np.argsort(points[:, 1], kind='stable')
    for below, above in zip(order, order[1:]):
        points[above, 1] = max(points[above, 1], points[below, 1] + least)
    return points


def cluster_words(query_clusters: QueryClusters, queries: Sequence[str], n: int = 3) -> list[list[str]]:
    """The words of each cluster that have the highest tf·idf, clusters taken as documents.

    Args:
        query_clusters: The clusters.
        queries: Q query texts.
        n: Words of a cluster.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    documents = [' '.join(queries[int(row)] for row in query_clusters.members(cluster))
                 for cluster in range(query_clusters.n_clusters)]
    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words='english', token_pattern=r'[A-Za-z][\w-]+')
    try:
        weights = vectorizer.fit_transform(documents)
    except ValueError:   # nothing but stop words
        return [[] for _ in documents]
    names = vectorizer.get_feature_names_out()
    return [[str(names[at]) for at in np.argsort(-row, kind='stable')[:n] if row[at] > 0]
            for row in weights.toarray()]


def quality_against_time(curves: Mapping[str, Sequence[tuple[float, float]]], measure: str = 'nDCG@10',
                         baseline: tuple[str, float] | None = None) -> Figure:
    """A measure against wall time.

    Args:
        curves: Name → (seconds, value) in order.
        measure: The measure's name.
        baseline: Name and value of a system without a training time, as a horizontal line.
    """
    figure, (ax,) = _figure(width=7.2)
    for name, points in curves.items():
        seconds, values = zip(*points, strict=True)
        ax.plot(np.asarray(seconds) / 60, values, marker='o', markersize=3, label=name)
    if baseline is not None:
        ax.axhline(baseline[1], color='grey', linestyle=':', label=baseline[0])
    ax.set(xlabel='minutes', ylabel=measure)
    _legend(ax)
    return figure


def comparison(values: pd.DataFrame, measures: Sequence[str]) -> Figure:
    """Mean and standard deviation of systems that were run several times, a panel for each measure.

    Args:
        values: A row for each run; the first index level is the system.
        measures: Columns.
    """
    systems = values.groupby(level=0, sort=False)
    means, deviations = systems.mean(), systems.std().fillna(0.0)   # of one seed there is none
    figure, axes = _figure(len(measures), width=4.2, height=1 + .3 * len(means))
    at = np.arange(len(means))[::-1]
    for ax, measure in zip(axes, measures, strict=True):
        ax.errorbar(means[measure], at, xerr=deviations[measure], fmt='o', capsize=3)
        ax.set(xlabel=measure, yticks=at, yticklabels=means.index if ax is axes[0] else [])
        ax.grid(axis='x', alpha=.3)
    return figure
