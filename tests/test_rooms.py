"""Imports run one way: a room imports from the rooms below it, never from one above."""
import ast

import pytest

# From the top to the bottom. A program is a file of src that no other file imports.
PROGRAMS = ('run', 'inference', 'check_data', 'get_norm_stats', 'report', 'summarise_folds',
            'average_checkpoints', 'export', 'demo')
ROOMS = ('experiment', 'experiment_data', 'exporting', 'tagging', 'checks', 'traintest', 'reports',
         'training', 'dataloader', 'utilities', 'audio', 'models')


def imported_rooms(path):
    """Return the names of the rooms that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split('.')[0])
    return names & {*PROGRAMS, *ROOMS}


def room_of(path, src):
    """Return the room of a file of src."""
    return path.relative_to(src).parts[0].removesuffix('.py')


def test_every_file_of_src_is_a_program_or_in_a_room(root):
    src = root / 'src'
    rooms = {room_of(path, src) for path in src.rglob('*.py')}
    assert rooms - {'__init__', 'build'} == {*PROGRAMS, *ROOMS}


@pytest.mark.parametrize('room', [*PROGRAMS, *ROOMS])
def test_a_room_imports_from_the_rooms_below_it_alone(root, room):
    src = root / 'src'
    below = ROOMS if room in PROGRAMS else ROOMS[ROOMS.index(room):]
    for path in src.rglob('*.py'):
        if room_of(path, src) == room:
            assert imported_rooms(path) <= {*below}, path


def test_the_model_can_be_taken_alone(root):
    for path in (root / 'src' / 'models').glob('*.py'):
        assert not imported_rooms(path), path


def test_src_does_not_import_the_recipes(root):
    recipes = {path.stem for path in (root / 'egs').rglob('*.py')}
    for path in (root / 'src').rglob('*.py'):
        modules = {alias.name for node in ast.walk(ast.parse(path.read_text()))
                   if isinstance(node, ast.Import) for alias in node.names}
        modules |= {node.module for node in ast.walk(ast.parse(path.read_text()))
                    if isinstance(node, ast.ImportFrom) and not node.level}
        assert not modules & recipes, path
