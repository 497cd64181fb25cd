"""The estimate of what several GPUs reach: which resource is the limit, and the example in the README."""
import re

import pytest

import scaling
from models import ASTModel

# A Setup in round numbers: a batch moves 1 MB and takes 10 ms of a core, of which there is one a GPU; the all-reduce of
# two GPUs takes 100 ms in a node, and of two nodes 1 s.
ROUND = {'step_seconds': 1.0, 'batch_size': 10, 'sample_kb': 100.0, 'gradient_mb': 1000.0, 'decode_ms': 1.0,
         'overlap': 0.3, 'gpus_a_node': 2, 'node_link_gbyte': 10.0, 'network_gbit': 8.0, 'storage_gbyte': 1.0,
         'cores_a_gpu': 1.0}


@pytest.fixture
def estimate():
    """The Estimate of so many GPUs, in round numbers but for what is given."""
    return lambda gpus, **changed: scaling.estimate(scaling.Setup(**{**ROUND, **changed}), gpus)


def example(root):
    """The command in the README, as words, and the output that it shows."""
    text = (root / 'egs' / 'audioset' / 'README.md').read_text()
    command, output = re.search(r'```bash\n(python scaling.py [^\n]*)\n```\n\n```\n(.*?)```', text, re.DOTALL).groups()
    return command.split(), output


def test_the_example_in_the_readme_prints_what_stands_there(root, run_shell):
    words, output = example(root)
    done = run_shell(words, cwd=root / 'egs' / 'audioset')
    assert done.returncode == 0, done.stderr
    assert done.stdout == output


def test_the_default_gradient_is_that_of_the_full_model():
    parameters = sum(parameter.numel() for parameter in ASTModel(imagenet_pretrain=False, verbose=False).parameters())
    assert scaling.make_parser().get_default('gradient_mb') == pytest.approx(4e-6 * parameters, abs=0.05)


def test_one_gpu_does_not_communicate(estimate):
    one = estimate(1)
    assert one.all_reduce == one.wait == 0 and one.limit == 'GPUs'


def test_gpus_of_one_node_leave_the_network_alone(estimate):
    assert estimate(2) == estimate(2, network_gbit=1e-3)
    assert estimate(2).all_reduce == pytest.approx(0.1)


def test_a_case_computed_by_hand(estimate):
    # Two nodes: 2 / 2 x 1 GB at 10 GB/s, then 2 / 2 x 1 GB at 1 GB/s; hidden behind 0.3 of 2 / 3 s.
    four = estimate(4)
    assert four.all_reduce == pytest.approx(1.1) and four.hidden == pytest.approx(0.2)
    assert four.wait == pytest.approx(0.9) and four.limit == 'network'


def test_the_time_of_a_ring_stays_below_twice_the_gradient(estimate):
    times = [estimate(gpus).all_reduce for gpus in (4, 8, 64, 4096)]
    assert times == sorted(times) and 2 < times[-1] < 2.1


@pytest.mark.parametrize('gpus', [1, 2, 4, 64])
@pytest.mark.parametrize('resource', ['network_gbit', 'node_link_gbyte', 'storage_gbyte', 'cores_a_gpu', 'overlap'])
def test_more_of_a_resource_is_never_slower(estimate, resource, gpus):
    waits = [estimate(gpus, **{resource: factor * ROUND[resource]}).wait for factor in (0.001, 0.1, 1, 2, 3)]
    assert waits == sorted(waits, reverse=True)


@pytest.mark.parametrize('shrunk, limit', [
    ({}, 'network'), ({'storage_gbyte': 0.001}, 'storage'), ({'cores_a_gpu': 0.001}, 'cores'),
    ({'node_link_gbyte': 0.1}, 'node links'), ({'network_gbit': 800.0}, 'GPUs')])
def test_the_limit_is_what_there_is_too_little_of(estimate, shrunk, limit):
    assert estimate(4, **shrunk).limit == limit


def test_data_are_read_while_gradients_travel(estimate):
    assert estimate(4, storage_gbyte=0.004).wait == estimate(4).wait  # 1 s to read, within a step of 1.9 s


def test_each_limit_is_found_whatever_the_others_do():
    setup = scaling.Setup(**{**ROUND, 'storage_gbyte': 0.0105})
    assert scaling.first_waits(setup) == {'node links': None, 'network': 4, 'storage': 12, 'cores': None}


def test_too_few_cores_are_a_limit_from_the_first_gpu():
    assert scaling.first_waits(scaling.Setup(**{**ROUND, 'cores_a_gpu': 0.005}))['cores'] == 1


def test_the_authors_speed_gives_the_hours_of_their_run(capsys):
    scaling.main('--step_seconds 0.7255 --batch_size 3 --gpus_a_node 4 --gpus 4 --clips 1953084'.split())
    row = dict(zip(scaling.COLUMNS, capsys.readouterr().out.splitlines()[1].split()))
    assert float(row['reached']) == pytest.approx(16.5, abs=0.1)
    assert 5 * float(row['hours an epoch']) == pytest.approx(164, rel=0.01)


@pytest.mark.parametrize('words, reason', [
    ([], 'required: --step_seconds'),
    (['--step_seconds', '0'], 'at least 1e-09'),
    (['--step_seconds', '0.1', '--overlap', '1.5'], 'at most 1'),
    (['--step_seconds', '0.1', '--gpus', '8', '12'], '--gpus 12 .* multiple of --gpus_a_node 8'),
    (['--step_seconds', '0.1', '--gpus', '100000'], '--gpus 100000 is more than 4096'),
])
def test_a_wrong_option_is_answered_with_one_sentence(capsys, words, reason):
    with pytest.raises(SystemExit) as stop:
        scaling.main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and re.search(reason, error) and error.count('\n') == 1
