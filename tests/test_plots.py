"""Each function gives a figure that shows what it was given, and saves."""
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from pyterrier_tasb import BatchPlan, QueryClusters, ScoredPairs, plots

pytestmark = pytest.mark.filterwarnings('error')

QUERIES = ['prune the rose', 'rose soil and the rose', 'soil for a rose', 'the orbit of a comet', 'comet and orbit',
           'why the']
CLUSTERS = QueryClusters.from_assignment(np.array([0, 0, 0, 1, 1, 2]), n_clusters=4)
RUN = pd.DataFrame([('q1', 'd1', 3.), ('q1', 'd2', 2.), ('q2', 'd3', 2.), ('q2', 'd4', 1.)],
                   columns=['qid', 'docno', 'score'])
QRELS = pd.DataFrame([('q1', 'd1', 1), ('q1', 'd9', 1), ('q2', 'd4', 1), ('q2', 'd3', 0)],
                     columns=['qid', 'docno', 'label'])
HISTORY = [{'step': 1, 'loss': 3., 'pairwise': 2., 'in_batch': 1.}, {'step': 2, 'nDCG@10': .5},
           {'step': 3, 'loss': 2., 'pairwise': 1., 'in_batch': 1.}, {'step': 4, 'nDCG@10': .7}]


def record(validated=True):
    history = [entry for entry in HISTORY if validated or 'loss' in entry]
    return {'history': history, 'training': {'measure': 'nDCG@10'}, 'best_step': 4 if validated else None}


def plan(sampling='random', constant=False):
    rng = np.random.default_rng(0)
    query = np.repeat(np.arange(6), 5)
    margin = np.full(30, 2.) if constant else rng.normal(size=30) ** 3
    pairs = ScoredPairs.from_arrays(None, [f'q{i}' for i in range(6)], [f'd{i}' for i in range(10)], query,
                                    rng.integers(0, 5, 30), rng.integers(5, 10, 30), margin)
    return BatchPlan(pairs, CLUSTERS, sampling=sampling, batch_size=2)


VECTORS = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
FIGURES = {
    'recall': (lambda: plots.recall({'BM25': RUN, 'dense': RUN}, QRELS, (1, 2, 5)), 1),
    'margins': (lambda: plots.margins(plan('tas-balanced'), n_batches=20), 2),
    'margins of random batches': (lambda: plots.margins(plan(), n_batches=20, bins=7), 2),
    'margins that are all equal': (lambda: plots.margins(plan(constant=True), n_batches=20), 2),
    'learning curve': (lambda: plots.learning_curve(record()), 2),
    'learning curve without validation': (lambda: plots.learning_curve(record(False)), 1),
    'clusters': (lambda: plots.clusters(CLUSTERS, VECTORS, QUERIES), 1),
    'clusters with few labels': (lambda: plots.clusters(CLUSTERS, VECTORS, QUERIES, n_labels=1), 1),
    'quality against time': (lambda: plots.quality_against_time({'tas': [(0, .1), (60, .3)], 'random': [(30, .2)]}), 1),
    'quality with a baseline': (lambda: plots.quality_against_time({'tas': [(60, .3)]}, baseline=('BM25', .2)), 1),
}


@pytest.mark.parametrize('make', [
    lambda: plots.recall({}, QRELS), lambda: plots.learning_curve({**record(), 'history': []}),
    lambda: plots.quality_against_time({})])
def test_nothing_to_label_has_no_legend(make):
    assert make().axes[0].get_legend() is None   # and warns of nothing, see above


def lines(ax):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()}


@pytest.mark.parametrize('name', FIGURES)
@pytest.mark.parametrize('suffix', ['png', 'pdf'])
def test_every_figure_saves(tmp_path, name, suffix):
    make, n_axes = FIGURES[name]
    figure = make()
    assert isinstance(figure, Figure) and len(figure.axes) == n_axes
    figure.savefig(tmp_path / f'figure.{suffix}')
    assert (tmp_path / f'figure.{suffix}').stat().st_size > 1000


def test_recall_is_the_share_of_relevant_documents_found():
    ax, = plots.recall({'BM25': RUN}, QRELS, (1, 2, 5)).axes
    x, y = lines(ax)['BM25']
    assert x == [1, 2, 5] and y == pytest.approx([.25, .75, .75])


def test_learning_curve_shows_what_was_recorded():
    loss, validation = plots.learning_curve(record()).axes
    assert lines(loss) == {'loss': ([1, 3], [3, 2]), 'pairwise': ([1, 3], [2, 1]), 'in-batch': ([1, 3], [1, 1])}
    assert ([2, 4], [.5, .7]) in lines(validation).values()
    assert lines(validation)['weights kept'][0] == [4, 4]
    assert validation.get_ylabel() == 'validation nDCG@10'
    _, validation = plots.learning_curve({**record(), 'untrained_value': .2}).axes
    assert ([0, 2, 4], [.2, .5, .7]) in lines(validation).values()


def test_time_is_in_minutes():
    ax, = plots.quality_against_time({'tas': [(0, .1), (90, .3)]}, 'RR@10', baseline=('BM25', .2)).axes
    assert lines(ax)['tas'] == ([0, 1.5], [.1, .3]) and lines(ax)['BM25'][1] == [.2, .2]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ('minutes', 'RR@10')


@pytest.mark.parametrize('sampling', ['random', 'tas', 'tas-balanced'])
def test_margins_within_a_querys_range_are_between_0_and_1(sampling):
    _, right = plots.margins(plan(sampling), n_batches=20).axes
    bars = right.patches[:40]
    assert [bars[0].get_x(), bars[-1].get_x() + bars[-1].get_width()] == pytest.approx([0, 1])
    assert sum(bar.get_height() * bar.get_width() for bar in bars) == pytest.approx(1)


def test_cluster_words_are_those_that_tell_clusters_apart():
    assert plots.cluster_words(CLUSTERS, QUERIES, n=2) == [['rose', 'soil'], ['comet', 'orbit'], [], []]
    assert plots.cluster_words(CLUSTERS, QUERIES, n=1) == [['rose'], ['comet'], [], []]


def test_words_of_every_cluster_are_worth_less():
    queries = ['best rose', 'best rose', 'best comet', 'best comet']
    clusters = QueryClusters.from_assignment(np.array([0, 0, 1, 1]))
    assert plots.cluster_words(clusters, queries, n=1) == [['rose'], ['comet']]


def test_clusters_of_stop_words_have_no_words():
    assert plots.cluster_words(CLUSTERS, ['why the'] * 6) == [[], [], [], []]


def test_largest_clusters_are_labelled():
    ax, = plots.clusters(CLUSTERS, VECTORS, QUERIES, n_labels=2).axes
    assert [text.get_text().split(', ')[0] for text in ax.texts] == ['rose', 'comet']
    assert ax.get_title() == '4 clusters of 6 queries'


def test_pyplot_is_never_imported():
    code = ('import sys\nfrom pyterrier_tasb import plots\n'
            "plots.quality_against_time({'tas': [(0, .1), (60, .3)]}).savefig('/dev/null', format='png')\n"
            "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_comparison_shows_means_and_deviations():
    values = pd.DataFrame({'nDCG@10': [.4, .6, .5], 'R@100': [.8, .8, .9]},
                          index=pd.MultiIndex.from_tuples([('plain', 0), ('plain', 1), ('both', 0)]))
    figure = plots.comparison(values, ['nDCG@10', 'R@100'])
    lines = [ax.lines[0].get_xdata().tolist() for ax in figure.axes]
    assert lines == [[.5, .5], [.8, .9]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ['plain', 'both']
