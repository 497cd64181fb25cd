"""Weight files: what is read, and what is said about those that do not fit their datafile."""
import pytest

from utilities.errors import DataError
from utilities.weight_files import read_sample_weights, weight_file


def test_weights_are_read_as_written(write):
    assert read_sample_weights(write('1.5\n0\n20e-1\n'), 3).tolist() == [1.5, 0, 2]
    assert read_sample_weights(write('7\n'), 1).tolist() == [7]


@pytest.mark.parametrize('content', [
    '1\n2\n', '1\n2\n3\n4\n', '1\n-1\n2\n', '1\nnan\n2\n', '0\n0\n0\n', '1\ntwo\n3\n'])
def test_a_weight_file_that_does_not_fit_its_datafile_says_how_to_make_one(write, content):
    path = write(content)
    with pytest.raises(DataError, match='sum over its labels of 1000') as error:
        read_sample_weights(path, 3)
    assert str(path) in str(error.value)


@pytest.mark.parametrize('datafile, weights', [
    ('data/train.json', 'data/train_weight.csv'), ('train', 'train_weight.csv'),
    ('a.json/b.json', 'a.json/b_weight.csv')])
def test_the_weight_file_lies_beside_its_datafile(datafile, weights):
    assert str(weight_file(datafile)) == weights
