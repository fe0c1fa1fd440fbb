"""Query clusters: k-means, files on disk, and the published text format."""
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_tasb.sampling import QueryClusters, default_k


@pytest.fixture
def vectors():
    """90 vectors around 3 far centres, row i near centre i % 3."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(3, 8)) * 10
    return (centres[np.arange(90) % 3] + rng.normal(size=(90, 8))).astype(np.float32)


def partition(clusters):
    return {frozenset(clusters.members(c).tolist()) for c in range(clusters.n_clusters)} - {frozenset()}


@pytest.mark.parametrize('n, k', [(1, 1), (99, 1), (400, 2), (400_000, 2000)])
def test_a_cluster_for_every_200_queries(n, k):
    assert default_k(n) == k


@pytest.mark.parametrize('draws, k', [(1, 1), (100, 10), (10**6, 30)])
def test_no_more_clusters_than_a_run_comes_back_to_ten_times(draws, k):
    assert default_k(6000, draws) == k


@pytest.mark.parametrize('spherical', [False, True])
def test_far_groups_are_found_from_some_start(vectors, spherical):
    groups = {frozenset(range(i, 90, 3)) for i in range(3)}
    assert any(partition(QueryClusters.fit(vectors, 3, spherical=spherical, seed=seed)) == groups for seed in range(20))


@pytest.mark.parametrize('spherical', [False, True])
def test_the_same_seed_gives_the_same_clusters(vectors, spherical):
    clusters = QueryClusters.fit(vectors, 5, spherical=spherical, seed=1)
    again = QueryClusters.fit(vectors, 5, spherical=spherical, seed=1)
    np.testing.assert_array_equal(again.assignment, clusters.assignment)
    np.testing.assert_array_equal(again.centroids, clusters.centroids)
    assert again.fingerprint == clusters.fingerprint


def test_another_seed_starts_elsewhere(vectors):
    one, other = (QueryClusters.fit(vectors, 10, seed=seed) for seed in (0, 1))
    assert partition(one) != partition(other)


def test_euclidean_queries_are_with_the_nearest_centroid(vectors):
    clusters = QueryClusters.fit(vectors, 7)
    distance = ((vectors[:, None] - clusters.centroids[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(clusters.assignment, distance.argmin(1))


def test_spherical_centroids_have_unit_length_and_the_largest_product(vectors):
    clusters = QueryClusters.fit(vectors, 7, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(clusters.centroids, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(clusters.assignment, (vectors @ clusters.centroids.T).argmax(1))


def test_spherical_looks_at_directions_only():
    angles = np.array([0, .05, .1, 1.5, 1.55, 1.6])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1) * np.array([1, 50, 2, 1, 60, 3])[:, None]
    assert partition(QueryClusters.fit(vectors, 2, spherical=True)) == {frozenset([0, 1, 2]), frozenset([3, 4, 5])}
    assert partition(QueryClusters.fit(vectors, 2)) != {frozenset([0, 1, 2]), frozenset([3, 4, 5])}


@pytest.mark.parametrize('k', [1, 90])
def test_from_one_cluster_to_one_for_each_query(vectors, k):
    clusters = QueryClusters.fit(vectors, k)
    assert clusters.sizes.tolist() == [90 // k] * k


def test_members_and_sizes_equal_the_assignment():
    clusters = QueryClusters.from_assignment(np.array([2, -1, 0, 2, 0, 2]), n_clusters=5)
    assert [clusters.members(c).tolist() for c in range(5)] == [[2, 4], [], [0, 3, 5], [], []]
    assert clusters.sizes.tolist() == [2, 0, 3, 0, 0]


@pytest.mark.parametrize('n, trained_on', [(200, 200), (256, 256), (300, 256)])
def test_centroids_are_of_at_most_256_queries_a_cluster_and_all_are_assigned(n, trained_on):
    clusters = QueryClusters.fit(np.eye(n), 1)
    assert np.count_nonzero(clusters.centroids) == trained_on and clusters.sizes.tolist() == [n]


@pytest.mark.parametrize('k', [0, 91])
def test_k_must_fit_the_queries(vectors, k):
    with pytest.raises(ValueError, match=f'k={k} clusters of 90 queries'):
        QueryClusters.fit(vectors, k)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 1e20])   # faiss ends the process for the last
def test_vectors_that_are_no_numbers_are_named(vectors, bad):
    vectors[[4, 17], 2] = bad
    with pytest.raises(ValueError, match=r'2 query vectors are NaN, infinite or too long \(first rows: \[4, 17\]\)'):
        QueryClusters.fit(vectors, 3)


@pytest.mark.parametrize('spherical', [False, True])
def test_global_random_state_is_left_alone(vectors, spherical, no_global_rng_change):
    with no_global_rng_change():
        QueryClusters.fit(vectors, 5, spherical=spherical)


@pytest.mark.parametrize('assignment, n_clusters, message', [
    ([-1, -1], None, 'no query has a cluster'), ([], None, 'no query has a cluster'), ([0, 3], 3, 'expected 0 to 2'),
    ([0, -2], None, '-2 to 0')])
def test_assignments_that_make_no_sense(assignment, n_clusters, message):
    with pytest.raises(ValueError, match=message):
        QueryClusters.from_assignment(np.array(assignment, dtype=np.int64), n_clusters=n_clusters)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('assignment, message', [
    ([0, .7, 1.9], '2 clusters are no whole numbers below .*, that of query row 1 is 0.7'),
    ([0, np.nan], 'query row 1 is nan'), ([0, np.inf], 'query row 1 is inf'), ([2**33, 1], 'query row 0 is 8589934592'),
    (['0', '1'], 'given as <U1'), ([True, False], 'given as bool'), ([None, 1], 'given as object')], ids=str)
def test_clusters_are_whole_numbers(assignment, message):
    with pytest.raises(ValueError, match=message):
        QueryClusters.from_assignment(assignment)


@pytest.mark.parametrize('kind', [np.int8, np.uint16, np.int64, np.float32, float])
def test_any_kind_of_whole_number_is_good(kind):
    assert QueryClusters.from_assignment(np.array([2, 0, 1], dtype=kind)).assignment.tolist() == [2, 0, 1]


@pytest.mark.parametrize('load', [QueryClusters, pt.Artifact.load])
@pytest.mark.parametrize('centroids', [True, False])
def test_saved_clusters_come_back(vectors, tmp_path, load, centroids):
    clusters = QueryClusters.fit(vectors, 4)
    if not centroids:
        clusters = QueryClusters.from_assignment(clusters.assignment, n_clusters=6)
    assert clusters.path is pt.Artifact.NO_PATH
    saved = clusters.save(tmp_path / 'clusters')
    for there in (saved, load(str(tmp_path / 'clusters'))):
        assert isinstance(there, QueryClusters)
        np.testing.assert_array_equal(there.assignment, clusters.assignment)
        np.testing.assert_array_equal(there.sizes, clusters.sizes)
        assert there.fingerprint == clusters.fingerprint
        if centroids:
            np.testing.assert_array_equal(there.centroids, clusters.centroids)
        else:
            assert there.centroids is None


def test_nothing_is_written_over(vectors, tmp_path):
    clusters = QueryClusters.fit(vectors, 4).save(tmp_path / 'clusters')
    with pytest.raises(ValueError, match=r'clusters exists: QueryClusters\(.*\) opens it, or give another path'):
        QueryClusters.fit(vectors, 5).save(tmp_path / 'clusters')
    assert QueryClusters(tmp_path / 'clusters').fingerprint == clusters.fingerprint


def test_a_directory_without_clusters_says_how_to_make_them(tmp_path):
    with pytest.raises(ValueError, match='QueryClusters.fit'):
        QueryClusters(tmp_path)


def cut(file):
    file.write_bytes(file.read_bytes()[:-20])


def other_values(file):
    np.save(file, np.load(file)[::-1])


@pytest.mark.parametrize('name, damage', [
    ('assignment.npy', cut), ('assignment.npy', lambda file: file.write_bytes(b'')), ('assignment.npy', other_values),
    ('assignment.npy', lambda file: file.unlink()), ('assignment.npy', lambda file: file.write_bytes(b'noise' * 50)),
    ('centroids.npy', cut), ('pt_meta.json', cut)],
    ids=['cut', 'empty', 'other values', 'lost', 'noise', 'cut centroids', 'cut meta'])
def test_damaged_files_are_named(vectors, tmp_path, name, damage):
    QueryClusters.fit(vectors, 4).save(tmp_path / 'clusters')
    damage(tmp_path / 'clusters' / name)
    with pytest.raises(ValueError, match=r'clusters.* is damaged'):
        QueryClusters(tmp_path / 'clusters')


def test_the_text_format_comes_back(vectors, tmp_path):
    clusters = QueryClusters.fit(vectors, 4)
    qids = [f'q{i}' for i in range(90)]
    clusters.write_text(tmp_path / 'clusters.txt', qids)
    lines = (tmp_path / 'clusters.txt').read_text().splitlines()
    assert [line.split() for line in lines] == [[qids[row] for row in clusters.members(c)] for c in range(4)]
    assert QueryClusters.read_text(tmp_path / 'clusters.txt', qids).fingerprint == clusters.fingerprint


@pytest.mark.parametrize('text', ['a b\nc d\n', 'a b\nc d', '\ufeffa\tb \r\n\r\n  c\td\r\n', 'b  a\n\n\nd c\n\n'])
def test_any_white_space_separates_ids(tmp_path, text):
    (tmp_path / 'clusters.txt').write_bytes(text.encode())
    clusters = QueryClusters.read_text(tmp_path / 'clusters.txt', ['a', 'b', 'c', 'd'])
    assert clusters.assignment.tolist() == [0, 0, 1, 1] and clusters.n_clusters == 2


def test_clusters_of_other_rows_are_found_by_id(tmp_path):
    clusters = QueryClusters.from_assignment(np.array([0, 0, 1, 1, 2]), qids=['a', 'b', 'c', 'd', 'x'])
    for some in clusters, clusters.save(tmp_path / 'clusters'):
        with pytest.warns(UserWarning, match='1 query ids are no training queries, 1 training queries are in no'):
            found = some.of_queries(['d', 'new', 'a', 'c', 'b'])
        assert found.assignment.tolist() == [1, -1, 0, 1, 0] and found.n_clusters == 3
        assert found.qids.tolist() == ['d', 'new', 'a', 'c', 'b']
        some.write_text(tmp_path / 'clusters.txt')
        assert QueryClusters.read_text(tmp_path / 'clusters.txt', some.qids).fingerprint == clusters.fingerprint
    nameless = QueryClusters.from_assignment(clusters.assignment).save(tmp_path / 'nameless')
    assert nameless.qids is None and nameless.fingerprint == clusters.fingerprint
    with pytest.raises(ValueError, match='none of its 5 query ids is a training query'):
        clusters.of_queries(['y', 'z'])
    with pytest.raises(ValueError, match='does not say which queries these are'):
        QueryClusters.from_assignment(np.array([0, 1])).of_queries(['a', 'b'])


def test_ids_on_one_side_only_are_counted(tmp_path):
    (tmp_path / 'clusters.txt').write_text('a b x\ny z\nc\n')
    with pytest.warns(UserWarning, match='3 query ids are no training queries, 1 training queries are in no cluster'):
        clusters = QueryClusters.read_text(tmp_path / 'clusters.txt', ['a', 'b', 'c', 'd'])
    assert clusters.assignment.tolist() == [0, 0, 2, -1] and clusters.sizes.tolist() == [2, 0, 1]


@pytest.mark.parametrize('text, message', [
    ('a b\nc a\n', 'line 2: query a is in more than one cluster'), ('x y\nz\n', 'none of its 3 query ids'),
    ('', 'none of its 0 query ids')])
def test_text_files_that_make_no_sense(tmp_path, text, message):
    (tmp_path / 'clusters.txt').write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        QueryClusters.read_text(tmp_path / 'clusters.txt', ['a', 'b', 'c'])
    assert 'clusters.txt' in str(error.value)


@pytest.mark.parametrize('data, line', [('a\nb é\n'.encode('latin-1'), 2), ('a b\nc é\n'.encode('utf-16'), 1),
                                        (b'\n' * 9000 + b'\xff', 9001)], ids=['latin-1', 'UTF-16', 'late'])
def test_a_text_file_that_is_not_utf_8_is_named_with_the_line(tmp_path, data, line):
    (tmp_path / 'clusters.txt').write_bytes(data)
    with pytest.raises(ValueError, match=f'clusters.txt, line {line} is not utf-8'):
        QueryClusters.read_text(tmp_path / 'clusters.txt', ['a', 'b', 'c'])


def test_ids_beyond_ascii_are_read(tmp_path):
    (tmp_path / 'clusters.txt').write_text('é 東\nш\n', encoding='utf-8')
    assert QueryClusters.read_text(tmp_path / 'clusters.txt', ['é', '東', 'ш']).assignment.tolist() == [0, 0, 1]


def test_ids_are_taken_by_their_place(tmp_path):
    qids = pd.Series(list('dcab'), index=[3, 2, 0, 1])
    QueryClusters.from_assignment([0, 0, 1, 1]).write_text(tmp_path / 'clusters', qids)
    assert (tmp_path / 'clusters').read_text() == 'd c\na b\n'


@pytest.mark.parametrize('qids, message', [(['a'], '1 qids for 2 queries'), (['a', 'b', 'c'], '3 qids for 2 queries'),
                                           (['a b', 'c'], r"have white space.*\['a b'\]"), (['', 'c'], 'are empty')])
def test_ids_that_cannot_be_written_are_refused(tmp_path, qids, message):
    with pytest.raises(ValueError, match=message):
        QueryClusters.from_assignment([0, 1]).write_text(tmp_path / 'clusters', qids)
    assert not list(tmp_path.iterdir())


def test_a_no_break_space_is_part_of_an_id(tmp_path):
    clusters = QueryClusters.from_assignment([0, 1], qids=['a\xa0b', 'c'])
    clusters.write_text(tmp_path / 'clusters')
    assert QueryClusters.read_text(tmp_path / 'clusters', clusters.qids).assignment.tolist() == [0, 1]


def test_centroids_belong_to_the_clusters(vectors, tmp_path):
    with pytest.raises(ValueError, match=r'centroids have shape \(7, 2\): expected one row for each of 2 clusters'):
        QueryClusters.from_assignment([0, 1], np.zeros((7, 2)))
    QueryClusters.fit(vectors, 3).save(tmp_path / 'clusters')
    (tmp_path / 'clusters' / 'centroids.npy').unlink()
    with pytest.raises(ValueError, match='its arrays are not those that were written'):
        QueryClusters(tmp_path / 'clusters')


@pytest.mark.parametrize('iterations', [0, -1, 2.5])
def test_no_iteration_is_refused(vectors, iterations):
    with pytest.raises(ValueError, match=f'iterations={iterations}: must be a whole number of at least 1'):
        QueryClusters.fit(vectors, 3, iterations=iterations)
