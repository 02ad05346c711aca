import pytest

from disa.testing import Space


@pytest.mark.parametrize("vocabulary, length_limit", [(2, 1), (2, 5), (3, 3), (6, 4)])
def test_every_completion_has_one_number_and_every_number_one_completion(vocabulary, length_limit):
    space = Space(vocabulary, length_limit)
    completions = [space.completion_ids(i) for i in range(space.completions)]
    assert [space.number(ids) for ids in completions] == list(range(space.completions))


def test_completions_end_with_eos_or_are_cut_at_the_limit_and_there_are_as_many_as_counted_by_hand():
    space = Space(vocabulary=3, length_limit=2)
    found = {tuple(space.completion_ids(i)): bool(space.truncated[i]) for i in range(space.completions)}
    ended = dict.fromkeys([(0,), (1, 0), (2, 0)], False)
    assert found == ended | dict.fromkeys([(1, 1), (1, 2), (2, 1), (2, 2)], True)
    assert space.prefixes == 3


def test_lengths_count_the_eos_token():
    space = Space(vocabulary=4, length_limit=3)
    assert [len(space.completion_ids(i)) for i in range(space.completions)] == space.lengths.tolist()


def test_default_size_counts_all_strings_of_five_letters_up_to_length_eight():
    assert Space().completions == (5**9 - 1) // 4


@pytest.mark.parametrize("ids", [[], [1], [1, 2, 1, 0], [0, 0], [3, 0], [1, 0, 1]])
def test_what_is_no_completion_has_no_number(ids):
    with pytest.raises(ValueError, match="no completion"):
        Space(vocabulary=3, length_limit=3).number(ids)
