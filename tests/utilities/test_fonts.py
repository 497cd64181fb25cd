"""Names of classes in pictures: in a font that has them, or as numbers."""
import io

import numpy as np
import pytest

from utilities.fonts import drawable_names, font_families, missing_characters
from utilities.plots import plot_confusion

NOWHERE = '\U0003fffd'  # no character, and in no font
NAMES = ('犬が吠える', '狗叫', '개 소리', 'dog')


@pytest.fixture
def cjk_font():
    """Skip if no font has Chinese, Japanese and Korean."""
    if missing := missing_characters(''.join(NAMES)):
        pytest.skip(f'no installed font has {"".join(sorted(missing))} (Debian: fonts-noto-cjk)')


def test_names_in_letters_are_drawn_in_matplotlibs_own_font(caplog):
    names = ('Male speech, man speaking', 'Élan', 'γάτα', 'собака')
    assert drawable_names(names) == names and not caplog.text
    assert font_families(''.join(names)) == ('sans-serif',)


def test_a_name_that_no_font_has_becomes_its_number_and_the_log_says_so_once(caplog):
    names = ('dog', f'a {NOWHERE}', 'cat', NOWHERE)
    assert drawable_names(names) == drawable_names(names) == ('dog', '1', 'cat', '3')
    assert len(caplog.messages) == 1 and 'names of 2 of 4 classes' in caplog.text
    assert 'apt-get install fonts-noto-cjk' in caplog.text


@pytest.mark.filterwarnings('error:Glyph')  # matplotlib's, of a glyph that is missing
def test_chinese_japanese_and_korean_are_drawn_in_a_font_that_has_them(cjk_font, caplog):
    names = drawable_names(NAMES)
    assert names == NAMES and not caplog.text and len(font_families(''.join(names))) > 1
    figure = plot_confusion(np.eye(4, dtype=int), names, '数据集')
    figure.savefig(io.BytesIO(), format='png')
    labels = figure.axes[0].get_xticklabels() + figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == [*NAMES] * 2


@pytest.mark.filterwarnings('error:Glyph')
@pytest.mark.parametrize('name', ['犬', '개', '狗'])
def test_a_picture_never_shows_boxes(name):
    figure = plot_confusion(np.eye(1, dtype=int), drawable_names((name,)), name)
    figure.savefig(io.BytesIO(), format='png')
    assert figure.axes[0].get_yticklabels()[0].get_text() in (name, '0')
