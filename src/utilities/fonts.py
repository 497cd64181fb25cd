"""Fonts of pictures: matplotlib's own lacks Chinese, Japanese, Korean and more; find others."""
import functools
import logging

from matplotlib import font_manager

# Fonts that have the same box for every character.
EMPTY_FONTS = ('last resort', 'lastresort', 'adobe blank')
REGULAR = (400, 'normal', 'regular')  # of weights

logger = logging.getLogger(__name__)


@functools.cache
def drawable_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names of classes for pictures; if the fonts cannot draw a name, the class's number.

    Args:
        names: names of all classes. The log says once if some of them become numbers.
    """
    missing = missing_characters(''.join(names))
    lost = [k for k, name in enumerate(names) if missing & set(name)]
    if lost:
        logger.warning('pictures show numbers in place of the names of %d of %d classes '
                       '(%d is %r), since no font has their characters; to see Chinese, '
                       'Japanese and Korean, install one (Debian, Ubuntu: apt-get install '
                       'fonts-noto-cjk)', len(lost), len(names), lost[0], names[lost[0]])
    return tuple(str(k) if missing & set(name) else name for k, name in enumerate(names))


@functools.cache
def font_families(text: str) -> tuple[str, ...]:
    """Return the font families that draw a text: matplotlib's own, then others for what it lacks.

    matplotlib takes each character from the first of them that has it.
    """
    families = ['sans-serif']
    wanted = needed_characters(text) - characters_of(file_of('sans-serif'))
    for font in other_fonts() if wanted else ():
        if found := wanted & characters_of(font.fname):
            families.append(font.name)
            wanted -= found
        if not wanted:
            break
    return tuple(families)


def missing_characters(text: str) -> set[str]:
    """Return the characters of a text that no installed font has."""
    files = map(file_of, font_families(text))
    return needed_characters(text).difference(*map(characters_of, files))


def file_of(family: str) -> str:
    """Return the file that matplotlib takes for a font family."""
    return font_manager.findfont(font_manager.FontProperties(family=[family]))


def needed_characters(text: str) -> set[str]:
    """Return the characters of a text that a font must have."""
    return {character for character in text if not character.isspace()}


@functools.lru_cache(maxsize=8)
def characters_of(file: str) -> frozenset[str]:
    """Return the characters that a font file has; none if it cannot be read."""
    try:
        return frozenset(map(chr, font_manager.get_font(file).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


def other_fonts() -> list[font_manager.FontEntry]:
    """Return the installed fonts, upright ones of regular weight without serifs first."""
    manager = font_manager.fontManager
    # matplotlib keeps its list in a file, which may be older than a font.
    for file in set(font_manager.findSystemFonts()) - {font.fname for font in manager.ttflist}:
        try:
            manager.addfont(file)
        except (OSError, RuntimeError, NotImplementedError) as error:  # such as coloured pictures
            logger.debug('matplotlib does not take the font %s: %s', file, error)
    fonts = [font for font in manager.ttflist
             if not font.name.lower().lstrip('.').startswith(EMPTY_FONTS)]
    return sorted(fonts, key=lambda font: (font.style != 'normal', font.weight not in REGULAR,
                                           'serif' in font.name.lower(), font.name, font.fname))
