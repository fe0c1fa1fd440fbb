"""Strings get numbers as a dictionary would give them."""
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pyterrier_tasb.numbering import NumberedStrings, Numbering
from pyterrier_tasb.texts import StringArray

BLOCKS = st.lists(st.lists(st.text(max_size=2), max_size=8), max_size=6)


@given(BLOCKS)
def test_numbers_are_those_of_a_dictionary(blocks):
    numbering, known = Numbering(), {}
    for strings in blocks:
        before = len(known)
        expected = [known.setdefault(string, len(known)) for string in strings]
        numbers, new = numbering.add(strings)
        assert numbers.tolist() == expected and numbers.dtype == np.uint32
        assert [strings[at] for at in new] == list(known)[before:]


@given(BLOCKS)
def test_strings_are_written_once_in_the_order_of_their_numbers(tmp_path_factory, blocks):
    path = tmp_path_factory.mktemp('strings') / 'some'
    with NumberedStrings(path) as strings:
        rows = [strings.add(some) for some in blocks]
    written = StringArray(path)
    assert [[written[row] for row in some] for some in rows] == blocks
    assert list(written) == list(dict.fromkeys(string for some in blocks for string in some))
