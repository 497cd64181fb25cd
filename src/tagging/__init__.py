"""Tag recordings with trained models: `load_tagger` loads them, `tag` yields what they hear."""
from tagging.recordings import tag
from tagging.result import Tagging
from tagging.tagger import Tagger, load_tagger

__all__ = ['Tagger', 'Tagging', 'load_tagger', 'tag']
