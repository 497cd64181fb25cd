"""What the tests of files that people write share."""
import pytest


@pytest.fixture
def write(tmp_path):
    """Write a file of that text or those bytes; returns its path."""
    def make(content, name='file'):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path
    return make
