"""The pages in Markdown: their links lead somewhere, and the map of src lists every file."""
import re


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
