"""Write the address of this repository wherever a reader needs it.

    python colab/set_address.py https://github.com/NAME/REPOSITORY

The notebook then clones this address in Colab without asking for it, the lines for pip are
complete, and README.md and the notebook show a badge that opens the notebook in Colab. Run it
again if the address changes.
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = 'colab/AST_Inference_Demo.ipynb'
PAGES = ('README.md', 'src/models/README.md')
BADGE = re.compile('<!-- badge -->(<a .*?</a>)?')
COLAB = 'https://colab.research.google.com'


def make_badge(address: str) -> str:
    """Return the badge as HTML; or '' if the address is not on GitHub, which Colab needs."""
    repository = re.fullmatch(r'https://github\.com/([\w.-]+/[\w.-]+)', address)
    if not repository:
        return ''
    link = f'{COLAB}/github/{repository[1]}/blob/main/{NOTEBOOK}'
    return f'<a href="{link}"><img src="{COLAB}/assets/colab-badge.svg" alt="Open in Colab"></a>'


def fill_in(text: str, address: str) -> str:
    """Return a text with the badge and the address in their places."""
    text = BADGE.sub(f'<!-- badge -->{make_badge(address)}', text)
    text = re.sub(r'git\+\S+?#subdirectory=src', f'git+{address}#subdirectory=src', text)
    return re.sub(r"^REPOSITORY = '.*?'", f"REPOSITORY = '{address}'", text)


def main(arguments: list[str]) -> None:
    """Fill in the address in the notebook and in PAGES."""
    match = re.fullmatch(r'(https://[\w./~-]+?)(\.git)?/?', ' '.join(arguments))
    if not match:
        sys.exit('error: give the https address of this repository, as in\n'
                 'python colab/set_address.py https://github.com/NAME/REPOSITORY')
    for page in PAGES:
        text = (ROOT / page).read_text(encoding='utf-8')
        (ROOT / page).write_text(fill_in(text, match[1]), encoding='utf-8', newline='\n')
    notebook = json.loads((ROOT / NOTEBOOK).read_text(encoding='utf-8'))
    for cell in notebook['cells']:
        cell['source'] = [fill_in(line, match[1]) for line in cell['source']]
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'
    (ROOT / NOTEBOOK).write_text(text, encoding='utf-8', newline='\n')


if __name__ == '__main__':
    main(sys.argv[1:])
