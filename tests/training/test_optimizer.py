"""The optimizer, its constants and its parameter groups."""
import torch

from small_model import CPU, LinearModel, Samples, settings
from training.optimizer import make_optimizer
from training.trainer import Trainer


def test_adam_has_the_published_constants():
    optimizer = make_optimizer(LinearModel(), settings(optim='adam', lr=2e-4))
    assert isinstance(optimizer, torch.optim.Adam)
    constants = [optimizer.defaults[name] for name in ('lr', 'betas', 'weight_decay')]
    assert constants == [2e-4, (0.95, 0.999), 5e-7]


def test_sgd_has_a_momentum_of_0_9():
    optimizer = make_optimizer(LinearModel(), settings(optim='sgd'))
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.defaults['momentum'] == 0.9


def test_all_parameters_have_the_rate_of_the_schedule():
    model = LinearModel()
    group, = make_optimizer(model, settings()).param_groups
    assert group['lr_scale'] == 1
    assert list(map(id, group['params'])) == list(map(id, model.parameters()))


def test_a_state_of_earlier_versions_without_scales_goes_on_to_the_same_weights():
    data, trained = Samples(6), []
    for has_scales in (True, False):
        first = Trainer(LinearModel(), CPU, settings(optim='adam'), 1)
        first.step(data.fbanks, data.labels)
        state = first.state_dict()
        if not has_scales:
            del state['optimizer']['param_groups'][0]['lr_scale']
        second = Trainer(LinearModel(), CPU, settings(optim='adam'), 1)
        second.load_state_dict(state)
        second.step(data.fbanks, data.labels)
        trained.append(second.model.layer.weight)
    assert torch.equal(*trained)
