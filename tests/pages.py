"""Read the pages in Markdown, for the tests of what they say."""
import re


def read_script(page, word):
    """Return the Python script of a page that contains a word."""
    scripts = re.findall(r'```python\n(.*?)```', page.read_text(encoding='utf-8'), re.DOTALL)
    [script] = [script for script in scripts if word in script]
    return script
