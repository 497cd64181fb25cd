"""The pages in Markdown: links, the map of src, and the lines for one's own pipeline."""
import re

import pytest
import torch
import torchaudio  # noqa: F401, used by the lines of a page

from audio.fbank import fbank, fit_frames, normalise  # noqa: F401, likewise
from audio.reading import load_waveform
from models import ASTModel, load_model, save_checkpoint
from pages import read_script
from tagging.recordings import tag
from tagging.tagger import load_tagger


def list_pages(root):
    """Return the paths of the README files and of CONTRIBUTING.md."""
    folders = ('egs', 'src', 'pretrained_models')
    below = (path for folder in folders for path in (root / folder).rglob('README.md'))
    return sorted(path for path in (root / 'README.md', *(root / '.github').glob('*.md'), *below)
                  if not {'data', 'exp'} & set(path.relative_to(root).parts))


def find_anchors(page):
    """Return the anchors that GitHub makes of the headings of a page."""
    text = re.sub(r'```.*?```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL)
    headings = re.findall(r'^#+ (.*)', text, re.MULTILINE)
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


def test_every_link_of_the_pages_leads_to_a_file_and_a_heading(root):
    pages = list_pages(root)
    assert len(pages) > 5
    for page in pages:
        for link in re.findall(r'\]\(([^)\s]+)\)', page.read_text(encoding='utf-8')):
            if link.startswith('https://'):
                continue
            path, _, anchor = link.partition('#')
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), (page, link)
            assert not anchor or anchor in find_anchors(target), (page, link)


def list_map(page):
    """Return the files in the tables of src/README.md, below the heading of a folder or none."""
    text = page.read_text(encoding='utf-8')
    folder, files = '', set()
    for line in text[text.index('## The files'):text.index('## To change')].split('\n'):
        if heading := re.match(r'### `(\w+/)`', line):
            folder = heading[1]
        elif line.startswith('| `'):
            files |= {folder + name for name in re.findall(r'`(\w+\.py)`', line.split('|')[1])}
    return files


def test_the_map_of_src_lists_every_file(root):
    src = root / 'src'
    files = {path.relative_to(src).as_posix() for path in src.rglob('*.py')
             if path.name != '__init__.py' and path.relative_to(src).parts[0] != 'build'}  # pip's
    assert list_map(src / 'README.md') == files


def test_the_page_of_a_recipe_lists_every_file_of_its_folder(root):
    pages = list((root / 'egs').glob('*/README.md'))
    assert len(pages) >= 4
    for page in pages:
        text = page.read_text(encoding='utf-8')
        listed = set(re.findall(r'`(\w+\.(?:py|sh))`', text[text.index('## Files'):]))
        assert listed == {path.name for path in page.parent.iterdir()
                          if path.suffix in ('.py', '.sh')}, page


@pytest.mark.parametrize('page, word, rate', [('src/README.md', 'fit_frames', 8000),
                                              ('src/models/README.md', 'kaldi.fbank', 8000)])
@pytest.mark.parametrize('seconds', [0.5, 1.5])  # padded, and cut
def test_the_lines_for_ones_own_pipeline_give_the_scores_of_inference(
        root, make_tone, tmp_path, page, word, rate, seconds):
    checkpoint, path = tmp_path / 'model.pth', make_tone('a.wav', rate=rate, seconds=seconds)
    torch.manual_seed(0)
    model = ASTModel(3, 10, 10, 128, 100, imagenet_pretrain=False, model_size='tiny224')
    torch.nn.init.normal_(model.mlp_head[1].weight, std=0.1)
    save_checkpoint(model, checkpoint, mean=-6.0, std=3.0, loss='CE', sample_rate=rate,
                    labels={'mids': ['a', 'b', 'c'], 'names': ['a', 'b', 'c']})
    model, description = load_model(checkpoint)
    names = {**globals(), **locals(), 'waveform': load_waveform(path, rate)}
    exec(read_script(root / page, word), names)
    tagger = load_tagger(str(checkpoint), device='cpu', amp='off')
    [expected] = tag(tagger, [path], window='first', num_workers=0)
    scores = names['logits'].softmax(dim=1)[0].detach().numpy()
    assert scores == pytest.approx(expected.scores[0], abs=1e-4)
