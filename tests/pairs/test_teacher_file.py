"""Published teacher files: every way to write them, and every way that they are broken."""
import gzip
import warnings

import numpy as np
import pyterrier as pt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_rows import rows, same

from pyterrier_tasb import ScoredPairs
from pyterrier_tasb.pairs import teacher_file

GOOD = '1.5\t0.5\t3\t10\t11\n2.0\t-0.5\t3\t10\t12\n'
BOM = b'\xef\xbb\xbf'


def some_lines(n=400, seed=0, ids=str):
    """Lines in no order: 90 queries, more than there are buckets, and 200 passages with gaps between their ids."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=8, size=(n, 2))
    query, pos, neg = rng.integers(0, 90, n) * 7, rng.integers(0, 200, n) * 11, rng.integers(0, 200, n) * 11
    return [(f'{t:.6f}', f'{f:.6f}', ids(q), ids(p), ids(m)) for (t, f), q, p, m in zip(scores, query, pos, neg)]


def by_arrays(lines):
    """The same pairs by `from_arrays`."""
    qids, docnos = sorted({line[2] for line in lines}), sorted({i for line in lines for i in line[3:]})
    margin = [float(line[0]) - float(line[1]) for line in lines]
    return ScoredPairs.from_arrays(None, qids, docnos, np.array([qids.index(line[2]) for line in lines]),
                                   np.array([docnos.index(line[3]) for line in lines]),
                                   np.array([docnos.index(line[4]) for line in lines]), np.array(margin))


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def join(lines, separator='\t', end='\n'):
    return end.join(separator.join(line) for line in lines) + end


FORMS = {
    'tabs': join, 'spaces': lambda lines: join(lines, ' '), 'many spaces': lambda lines: join(lines, '   '),
    'mixed white space': lambda lines: ''.join(f' {a}\t{b} \t {q}  {p}\t\t{n} \t\n' for a, b, q, p, n in lines),
    'CRLF': lambda lines: join(lines, end='\r\n'), 'no final newline': lambda lines: join(lines)[:-1],
    'CRLF, no final newline': lambda lines: join(lines, end='\r\n')[:-2],
    'blank lines': lambda lines: '\n\n' + join(lines, end='\n \t\n\n') + '\n',
    'BOM': lambda lines: BOM + join(lines).encode(), 'BOM, CRLF': lambda lines: BOM + join(lines, end='\r\n').encode(),
    'gzip': lambda lines: gzip.compress(join(lines).encode()),
    'gzip, BOM, spaces, no final newline': lambda lines: gzip.compress(BOM + join(lines, ' ').encode()[:-1]),
    'two gzip members': lambda lines: gzip.compress(join(lines[:9]).encode()) + gzip.compress(join(lines[9:]).encode()),
}
IDS = {'numbers': str, 'strings': 'D{}'.format, 'decimals': '{}.0'.format, 'leading zeros': '{:05d}'.format,
       'negative': '-{}'.format, 'beyond 64 bits': '9{:020d}'.format, 'beyond 28 bits': '9{:010d}'.format,
       'signs of comments and quotes': '#"{}'.format, 'truth': lambda i: str(i > 900), 'not ASCII': 'é{}'.format}


@pytest.mark.parametrize('ids, block', [('numbers', 700), ('numbers', 1 << 20), ('strings', 700)])
@pytest.mark.parametrize('form', FORMS)
def test_every_form_gives_the_same_pairs(tmp_path, monkeypatch, form, block, ids):
    monkeypatch.setattr(teacher_file, '_BLOCK', block)
    lines = some_lines(150, ids=IDS[ids])
    pairs = ScoredPairs.from_teacher_file(write(tmp_path / 'scores', FORMS[form](lines)), tmp_path / 'pairs')
    assert same(pairs, by_arrays(lines))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['pairs', 'scores']


@pytest.mark.parametrize('ids', IDS)
def test_ids_come_back_as_they_are_written(tmp_path, ids):
    lines = some_lines(ids=IDS[ids])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        pairs = ScoredPairs.from_teacher_file(write(tmp_path / 'scores', join(lines)), tmp_path / 'pairs')
    assert same(pairs, by_arrays(lines))
    assert len(set(pairs.qids)) == len(pairs.qids) and len(set(pairs.docnos)) == len(pairs.docnos)


@pytest.mark.parametrize('column', [2, 4])
@pytest.mark.parametrize('odd', ['x1', '007', '+7', '5.0', '99999999999', '-0', '-00', '-000', '7\0', 'a\xa0b', '٧'])
def test_one_odd_id_late_in_the_file_changes_no_other(tmp_path, monkeypatch, column, odd):
    monkeypatch.setattr(teacher_file, '_BLOCK', 2000)
    lines = [list(line) for line in some_lines()]
    lines[-3][column] = odd
    pairs = ScoredPairs.from_teacher_file(write(tmp_path / 'scores', join(lines)), tmp_path / 'pairs')
    assert same(pairs, by_arrays(lines))


def test_numbers_and_words_mixed_in_a_long_block_warn_of_nothing(tmp_path):
    lines = [*some_lines(20_000), ('1', '0', 'q', 'p', 'n')]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        pairs = ScoredPairs.from_teacher_file(write(tmp_path / 'scores', join(lines)), tmp_path / 'pairs')
    assert len(pairs) == 20_001 and 'q' in list(pairs.qids)


lines_of = st.lists(st.tuples(*[st.floats(-1000, 1000, width=32)] * 2, *[st.integers(0, 300)] * 3),
                    min_size=1, max_size=40)


@settings(max_examples=20)
@given(lines_of, st.integers(1, 300), st.integers(1, 3))
def test_pairs_equal_those_of_arrays(tmp_path_factory, lines, block, n_threads):
    folder = tmp_path_factory.mktemp('teacher')
    lines = [tuple(map(str, line)) for line in lines]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(teacher_file, '_BLOCK', block)
        pairs = ScoredPairs.from_teacher_file(write(folder / 'scores', join(lines)), folder / 'pairs',
                                              n_threads=n_threads)
    assert same(pairs, by_arrays(lines))
    query = np.repeat(np.arange(pairs.n_queries), np.diff(pairs.indptr))
    order = np.lexsort((pairs.neg, pairs.pos, pairs.margin, query))
    np.testing.assert_array_equal(order, np.arange(len(pairs)))
    assert pairs.n_queries == len({line[2] for line in lines})
    assert sorted(map(int, pairs.docnos)) == sorted({int(i) for line in lines for i in line[3:]})


words = st.text(st.characters(exclude_categories=['Cs'], exclude_characters=' \t\n\r\x0b\x0c\0'), min_size=1,
                max_size=3)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(-1000, 1000, width=32), st.floats(-1000, 1000, width=32), words, words, words),
                min_size=1, max_size=20), st.integers(1, 300))
def test_pairs_of_string_ids_are_those_that_are_read_line_by_line(tmp_path_factory, lines, block):
    folder = tmp_path_factory.mktemp('teacher')
    file = write(folder / 'scores', join([tuple(map(str, line)) for line in [*lines, (1.0, 2.0, 'q', 'd', 'e')]]))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(teacher_file, '_BLOCK', block)
        fast = ScoredPairs.from_teacher_file(file, folder / 'fast')
        monkeypatch.setattr(teacher_file, '_strings', lambda block: None)
        plain = ScoredPairs.from_teacher_file(file, folder / 'plain')
    assert fast.fingerprint == plain.fingerprint


def test_the_order_of_lines_and_the_number_of_threads_do_not_matter(tmp_path):
    lines = some_lines()
    one = ScoredPairs.from_teacher_file(write(tmp_path / 'scores', join(lines)), tmp_path / 'one', n_threads=1)
    two = ScoredPairs.from_teacher_file(write(tmp_path / 'scores', join(lines[::-1])), tmp_path / 'two', n_threads=4)
    assert one.fingerprint == two.fingerprint
    assert pt.Artifact.load(str(tmp_path / 'one')).fingerprint == one.fingerprint


def test_repeated_lines_are_kept(tmp_path):
    pairs = ScoredPairs.from_teacher_file(write(tmp_path / 'scores', GOOD * 3), tmp_path / 'pairs')
    assert rows(pairs) == [('3', '10', '11', 1.0)] * 3 + [('3', '10', '12', 2.5)] * 3


BROKEN = {
    'short row': ('1.0\t2.0\t3\t4\n', 'line {}: 4 columns, expected 5'),
    'very short row': ('1\n', 'line {}: 1 columns'), 'extra column': ('1 2 3 4 5 6\n', 'line {}: 6 columns'),
    'text for a score': ('high\t2\t3\t4\t5\n', "line {}: the scores are 'high' and '2', expected numbers"),
    'text for the second score': ('1\tlow\t3\t4\t5\n', "line {}: the scores are '1' and 'low'"),
    'empty score': ('\t2\t3\t4\t5\n', 'line {}: 4 columns'), 'NA': ('1\tNA\t3\t4\t5\n', 'line {}: the scores'),
    'NaN': ('nan\t2\t3\t4\t5\n', 'line {}: the scores are nan and 2, expected finite'),
    'NaN as pandas writes it': ('1\tNaN\t3\t4\t5\n', 'line {}: the scores are 1 and NaN'),
    'infinite': ('inf\t2\t3\t4\t5\n', 'line {}: the scores are inf'),
    'both infinite': ('inf\tinf\t3\t4\t5\n', 'line {}: the scores are inf'),
    'beyond float32': ('1e39\t2\t3\t4\t5\n', 'line {}: the scores are 1e39'),
    'an underscore in a score': ('1_5\t2\t3\t4\t5\n', "line {}: the scores are '1_5' and '2', expected numbers"),
    'digits of another script': ('1\t٢\t3\t4\t5\n', "line {}: the scores are '1' and '٢', expected numbers"),
    'white space within an id': ('1\t2\t3\x0b3\t4\t5\n', 'line {}: 6 columns'),
    'truth': ('True\tFalse\t3\t4\t5\n', "line {}: the scores are 'True'"),
    'header': ('pos\tneg\tquery\tp\tn\n', "line {}: the scores are 'pos'"),
    'commas': ('1,2,3,4,5\n', 'line {}: 1 columns'),
}


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('before, after, block', [
    ('', GOOD, 1 << 20), (GOOD * 20 + '\n \n', GOOD, 30), ('1 2 x y z\n' + '\n' * 40, GOOD, 30)],
    ids=['first', 'in a later block', 'after strings'])
@pytest.mark.parametrize('broken', BROKEN)
def test_a_broken_line_is_named_and_nothing_is_left(tmp_path, monkeypatch, broken, before, after, block):
    monkeypatch.setattr(teacher_file, '_BLOCK', block)
    line, message = BROKEN[broken]
    write(tmp_path / 'scores.tsv', before + line + after)
    with pytest.raises(ValueError, match=f'scores.tsv, {message.format(before.count(chr(10)) + 1)}'):
        ScoredPairs.from_teacher_file(tmp_path / 'scores.tsv', tmp_path / 'pairs')
    assert [path.name for path in tmp_path.iterdir()] == ['scores.tsv']


@pytest.mark.parametrize('data', ['', '\n', ' \r\n\n\t\n', BOM, gzip.compress(b'', mtime=0)], ids=repr)
@pytest.mark.parametrize('read', [ScoredPairs.from_teacher_file, ScoredPairs.from_text_file])
def test_an_empty_file_is_named_and_nothing_is_left(tmp_path, data, read):
    write(tmp_path / 'scores.tsv', data)
    with pytest.raises(ValueError, match='scores.tsv has no lines: expected pos_score, neg_score, query'):
        read(tmp_path / 'scores.tsv', tmp_path / 'pairs')
    assert [path.name for path in tmp_path.iterdir()] == ['scores.tsv']


@pytest.mark.parametrize('damage', [lambda blob: blob[:-12], lambda blob: blob[:5], lambda blob: blob[:len(blob) // 2],
                                    lambda blob: blob[:-8] + b'\0' * 8, lambda blob: blob + b'more',
                                    lambda blob: blob[:20] + bytes(255 - byte for byte in blob[20:])],
                         ids=['end', 'header', 'half', 'checksum', 'more', 'changed'])
@pytest.mark.parametrize('read, block', [(ScoredPairs.from_teacher_file, 100), (ScoredPairs.from_teacher_file, 1 << 20),
                                         (ScoredPairs.from_text_file, 1 << 20)])
def test_a_damaged_gzip_file_is_named_and_nothing_is_left(tmp_path, monkeypatch, damage, block, read):
    monkeypatch.setattr(teacher_file, '_BLOCK', block)
    write(tmp_path / 'scores.gz', damage(gzip.compress(join(some_lines()).encode())))
    with pytest.raises(ValueError, match=r'scores.gz, in or after line \d+: the gzip file is cut off or damaged'):
        read(tmp_path / 'scores.gz', tmp_path / 'pairs')
    assert [path.name for path in tmp_path.iterdir()] == ['scores.gz']


def test_pairs_that_are_there_stay(tmp_path):
    file = write(tmp_path / 'scores', GOOD)
    made = ScoredPairs.from_teacher_file(file, tmp_path / 'pairs')
    for read in (ScoredPairs.from_teacher_file, ScoredPairs.from_text_file):
        with pytest.raises(ValueError, match='pairs exists'):
            read(file, tmp_path / 'pairs')
    assert ScoredPairs(tmp_path / 'pairs').fingerprint == made.fingerprint


TEXTS = [('2.5', '1.0', 'what is a café', 'a place  for coffee', 'soil'),
         ('0', '1', 'rose', 'soil', 'a rose\x0cis red'),
         ('3.5', '1.0', 'what is a café', 'soil', 'a place  for coffee'), ('7', '1', '星', ' star ', '')]


@pytest.mark.parametrize('block', [1, 1 << 20])
@pytest.mark.parametrize('form', ['tabs', 'CRLF', 'no final newline', 'BOM', 'gzip', 'between blank lines'])
def test_the_text_form_keeps_its_texts(tmp_path, monkeypatch, form, block):
    monkeypatch.setattr(teacher_file, '_BLOCK', block)
    data = '\n\n' + join(TEXTS) + '\n' if form == 'between blank lines' else FORMS[form](TEXTS)
    ScoredPairs.from_text_file(write(tmp_path / 'scores', data), tmp_path / 'pairs')
    pairs = pt.Artifact.load(str(tmp_path / 'pairs'))
    assert list(pairs.qids) == ['q0', 'q1', 'q2'] and list(pairs.queries.ids) == list(pairs.qids)
    assert list(pairs.docs.ids) == list(pairs.docnos) == [f'd{i}' for i in range(5)]
    texts = [(pairs.queries[int(q[1:])], pairs.docs[int(p[1:])], pairs.docs[int(n[1:])], margin)
             for q, p, n, margin in rows(pairs)]
    assert sorted(texts) == sorted((q, p, n, float(a) - float(b)) for a, b, q, p, n in TEXTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['pairs', 'scores']


@pytest.mark.parametrize('line, message', [
    ('1\t2\tquery\tpassage\n', '4 columns, expected 5 separated by tabs: pos_score, neg_score, query, pos_text'),
    ('1 2 query passage passage\n', '1 columns'), ('1\t2\tq\tp\tn\tmore\n', '6 columns'),
    ('1\thigh\tq\tp\tn\n', "the scores are '1' and 'high'"),
    ('1\tnan\tq\tp\tn\n', 'the scores are 1 and nan, expected finite numbers')])
@pytest.mark.parametrize('block', [10, 1 << 20])
def test_a_broken_line_of_the_text_form_is_named_and_nothing_is_left(tmp_path, monkeypatch, line, message, block):
    monkeypatch.setattr(teacher_file, '_BLOCK', block)
    write(tmp_path / 'scores.tsv', join(TEXTS) + '\n\n' + line + join(TEXTS))
    with pytest.raises(ValueError, match=f'scores.tsv, line 7: {message}'):
        ScoredPairs.from_text_file(tmp_path / 'scores.tsv', tmp_path / 'pairs')
    assert [path.name for path in tmp_path.iterdir()] == ['scores.tsv']


def test_a_missing_file_leaves_nothing(tmp_path):
    for read in (ScoredPairs.from_teacher_file, ScoredPairs.from_text_file):
        with pytest.raises(FileNotFoundError, match='scores'):
            read(tmp_path / 'scores', tmp_path / 'pairs')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('end', ['\n', '\r\n', ''])
@pytest.mark.parametrize('separator', ['\t', ' '])
@pytest.mark.parametrize('odd', ['-0', '-00', '0\0'])
def test_zeros_of_other_spelling_are_other_ids(tmp_path, end, separator, odd):
    lines = [('2', '-0.5', '0', '11', '0'), ('-0', '1', odd, '11', odd)]
    pairs = ScoredPairs.from_teacher_file(write(tmp_path / 'scores', join(lines, separator)[:-1] + end),
                                          tmp_path / 'pairs')
    assert rows(pairs) == sorted([('0', '11', '0', 2.5), (odd, '11', odd, -1.0)])


@pytest.mark.parametrize('read, other', [(ScoredPairs.from_teacher_file, 'D1'), (ScoredPairs.from_teacher_file, '1'),
                                         (ScoredPairs.from_text_file, 'a text')], ids=['strings', 'numbers', 'text'])
@pytest.mark.parametrize('encoding, line', [('latin-1', 3), ('utf-16', 1)])
@pytest.mark.parametrize('block', [10, 1 << 20])
def test_a_file_that_is_not_utf_8_is_named_with_the_line(tmp_path, monkeypatch, read, other, encoding, line, block):
    monkeypatch.setattr(teacher_file, '_BLOCK', block)
    lines = [('2', '1', i, other, other) for i in (other, other, 'é', 'è')]
    write(tmp_path / 'scores.tsv', join(lines).encode(encoding))
    with pytest.raises(ValueError, match=f'scores.tsv, line {line} is not utf-8'):
        read(tmp_path / 'scores.tsv', tmp_path / 'pairs')
    assert [path.name for path in tmp_path.iterdir()] == ['scores.tsv']
