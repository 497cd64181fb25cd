"""Other ViTs of timm than the published four: every kind computes what timm computes."""
import json

import pytest
import timm
import torch
from safetensors.torch import save_file

import export
import run
from audio.fbank import normalise
from exporting.agreement import BOUNDS
from models import (
    ASTModel,
    WeightsError,
    load_checkpoint,
    load_model,
    resample_pos_embed,
    save_checkpoint,
)
from models.ast_models import find_backbone
from models.backbones import AUDIO_BACKBONES
from tiny_vits import HEADS, NAMES

CLASSES = 5
MEAN, STD = -4.0, 4.0


# The kinds that are exported and trained, which takes seconds.
MAIN = [f'tiny_vit_{kind}' for kind in ('distilled', 'one_token', 'no_token', 'registers',
                                        'layer_scale', 'patch14')]


@pytest.fixture(params=NAMES)
def name(request):
    """The name of a small ViT of each kind."""
    return request.param


@pytest.fixture
def vit(name):
    """timm's own model of that name, for images of three colours; every weight is random."""
    torch.manual_seed(0)
    vit = timm.create_model(name, num_classes=CLASSES).eval()
    with torch.no_grad():
        for value in vit.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return vit


@pytest.fixture
def weights(vit, name, tmp_path):
    """A file of its weights, under timm's names."""
    path = tmp_path / f'{name}.some_tag.safetensors'
    save_file({key: value.contiguous() for key, value in vit.state_dict().items()}, path)
    return path


@pytest.fixture
def make(name):
    """Build a model on a ViT of each kind; its weights are random, and its head is not small."""
    def make(**settings):
        torch.manual_seed(1)
        model = ASTModel(**{'label_dim': CLASSES, 'fstride': 8, 'tstride': 10, 'input_fdim': 48,
                            'input_tdim': 96, 'imagenet_pretrain': False, 'model_size': name,
                            'verbose': False, **settings}).eval()
        with torch.no_grad():
            for value in model.parameters():
                value.add_(0.05 * torch.randn_like(value))
        return model
    return make


def make_input(model, batch=2):
    """Return random spectrograms (batch, frames, mel bins) for a model."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, model.config.input_tdim, model.config.input_fdim, generator=generator)


def pool(vit, tokens):
    """Return what the head of a timm model would see, before any normalisation."""
    if vit.global_pool == 'token':
        return tokens[:, :vit.num_prefix_tokens - vit.num_reg_tokens].mean(dim=1)
    return tokens[:, vit.num_prefix_tokens:].mean(dim=1)


def test_its_tokens_and_embedding_are_those_of_timm(vit, weights):
    patch, (f, t) = vit.patch_embed.patch_size[0], vit.patch_embed.grid_size
    model = ASTModel(CLASSES, patch, patch, f * patch, t * patch, start=weights,
                     verbose=False).eval()
    x = make_input(model)
    with torch.no_grad():
        tokens = vit.forward_features(x.transpose(1, 2)[:, None].expand(-1, 3, -1, -1))
        torch.testing.assert_close(model.v.forward_features(x.transpose(1, 2)[:, None]), tokens,
                                   rtol=0, atol=1e-5)
        torch.testing.assert_close(model.forward_features(x), pool(vit, tokens), rtol=0, atol=1e-5)
        by_head = model.mlp_head(pool(vit, tokens))
        torch.testing.assert_close(model(x), by_head, rtol=0, atol=1e-5)


def test_the_normalisation_after_the_pooling_comes_along(vit, weights):
    model = ASTModel(CLASSES, start=weights, verbose=False)
    if isinstance(vit.fc_norm, torch.nn.Identity):
        assert model.mlp_head[0].eps == 1e-5 and not torch.any(model.mlp_head[0].bias)
    else:
        assert torch.equal(model.mlp_head[0].weight, vit.fc_norm.weight)
        assert model.mlp_head[0].eps == vit.fc_norm.eps


def test_positions_are_cut_or_interpolated_and_those_of_other_tokens_stay(vit, weights):
    model = ASTModel(CLASSES, 8, 10, 48, 96, start=weights, verbose=False)
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    f, t = model.grid
    assert model.v.pos_embed.shape[1] == prefix + f * t
    assert torch.equal(model.v.pos_embed[:, :prefix], vit.pos_embed[:, :prefix])
    expected = resample_pos_embed(vit.pos_embed, vit.patch_embed.grid_size, (f, t),
                                  num_prefix_tokens=prefix)
    assert torch.equal(model.v.pos_embed, expected)


def test_frame_features_are_the_mean_over_frequency(make):
    model = make()
    x = make_input(model)
    tokens = model.v.forward_features(x.transpose(1, 2)[:, None])
    patches = tokens[:, model.v.num_prefix_tokens:].unflatten(1, model.grid)
    torch.testing.assert_close(model.frame_features(x), patches.mean(dim=1))


def test_attention_is_that_of_the_tokens_which_the_head_classifies(make):
    model = make()
    x = make_input(model)
    rows, maps = model.attention(x), model.attention_maps(x)
    seen = []
    for block in model.v.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, out: seen.append(out))
    with torch.no_grad():
        model.v.forward_features(x.transpose(1, 2)[:, None])
    prefix, count = model.v.num_prefix_tokens, model.num_class_tokens
    for ours, all_rows, pictures in zip(rows, seen, maps, strict=True):
        expected = all_rows[:, :, :count] if count else all_rows[:, :, prefix:].mean(2, keepdim=True)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        assert len(pictures) == (count or 1)
        for i, picture in enumerate(pictures):
            assert picture.shape == (len(x), HEADS, *model.grid)
            assert torch.equal(picture.flatten(2), ours[:, :, i, prefix:])


def test_patchout_leaves_out_patches_alone(make):
    model = make().train()
    x, columns, prefix = make_input(model), model.grid[1], model.v.num_prefix_tokens
    seen = []
    model.v.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    model(x)
    model.keep_patches([0, 2], [1, 3, 4])
    model(x)
    whole, kept = seen
    places = [row * columns + column for row in (0, 2) for column in (1, 3, 4)]
    expected = torch.cat([whole[:, :prefix], whole[:, prefix:][:, places]], dim=1)
    torch.testing.assert_close(kept, expected)


def test_a_saved_model_says_its_timm_name_and_its_pooling_and_is_loaded_again(make, name, tmp_path):
    model = make()
    save_checkpoint(model, tmp_path / 'model.pth', mean=MEAN, std=STD, loss='BCE')
    description = json.loads((tmp_path / 'model.json').read_text())
    assert description['model_size'] == description['timm_name'] == name
    assert description['pooling'] == ('class tokens' if model.num_class_tokens else 'patches')
    again, _ = load_model(tmp_path / 'model.pth')
    x = make_input(model)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_a_description_with_another_pooling_is_refused(make, tmp_path):
    model = make()
    save_checkpoint(model, tmp_path / 'model.pth', mean=MEAN, std=STD, loss='BCE')
    description = json.loads((tmp_path / 'model.json').read_text())
    other = {'class tokens': 'patches', 'patches': 'class tokens'}[description['pooling']]
    (tmp_path / 'model.json').write_text(json.dumps({**description, 'pooling': other}))
    for load in (load_model, lambda path: load_checkpoint(model, path)):
        with pytest.raises(WeightsError, match='classifies'):
            load(tmp_path / 'model.pth')


@pytest.mark.parametrize('name', MAIN, indirect=True)
@pytest.mark.parametrize('form', ['torch_export', 'onnx'])
def test_an_exported_file_computes_the_same(make, form, tmp_path, make_labels):
    if form == 'onnx':
        for package in ('onnx', 'onnxscript', 'onnxruntime'):
            pytest.importorskip(package)
    model = make()
    save_checkpoint(model, tmp_path / 'model.pth', mean=MEAN, std=STD, loss='BCE')
    out = tmp_path / f'model{export.SUFFIXES[form]}'
    export.main(['--checkpoint', str(tmp_path / 'model.pth'), '--format', form, '--out', str(out),
                 '--label_csv', str(make_labels(CLASSES))])
    fbanks = MEAN + STD * make_input(model, batch=3)
    with torch.no_grad():
        expected = model(normalise(fbanks, MEAN, STD))
    if form == 'onnx':
        import onnxruntime
        session = onnxruntime.InferenceSession(out)
        logits = torch.from_numpy(session.run(['logits'], {'fbank': fbanks.numpy()})[0])
    else:
        logits, _ = torch.export.load(out).module()(fbanks)
    torch.testing.assert_close(logits, expected, rtol=0, atol=BOUNDS['fbank'])


@pytest.mark.parametrize('name', MAIN, indirect=True)
def test_training_goes_on_where_it_stopped(name, tmp_path, monkeypatch, make_tone, make_labels,
                                           make_datafile):
    monkeypatch.chdir(tmp_path)
    make_labels(2)
    clips = [(make_tone(f'{i}.wav', 400 * (1 + i % 2), seconds=0.4, seed=i), f'/m/{i % 2}')
             for i in range(4)]
    make_datafile(clips)

    def train(exp_dir, epochs):
        run.main(f'--data_train data.json --data_val data.json --label_csv labels.csv --n_class 2 '
                 f'--exp_dir {exp_dir} --num_mel_bins 28 --audio_length 32 --fstride 14 '
                 f'--tstride 14 --model_size {name} --imagenet_pretrain False --batch_size 2 '
                 f'--num_workers 0 --device cpu --time_patchout 0 --save_model True '
                 f'--n_epochs {epochs}'.split())
        return tmp_path / exp_dir

    train('stopped', 1)
    for file in ('result.csv', 'models/audio_model.2.pth'):
        stopped, straight = train('stopped', 2) / file, train('straight', 2) / file
        assert stopped.read_bytes() == straight.read_bytes()


def test_every_kind_of_audio_model_can_be_built_saved_and_loaded(tmp_path):
    for size in AUDIO_BACKBONES:
        if 'base' not in size and 'large' not in size:
            model = ASTModel(3, 16, 2, 128, 64, imagenet_pretrain=False, model_size=size,
                             verbose=False)
            save_checkpoint(model, tmp_path / 'model.pth')
            assert load_model(tmp_path / 'model.pth')[1]['model_size'] == size


@pytest.mark.parametrize('model_size, reason', [
    ('swin_tiny_patch4_window7_224', 'SwinTransformer'),
    ('eva02_tiny_patch14_224', 'rotary'),
    ('vit_relpos_small_patch16_224', 'relative positions'),
    ('vit_small_r26_s32_224', 'other layers'),
    ('vit_pwee_patch16_reg1_gap_256', 'attention in another way'),
    ('resnet18', 'ResNet'),
])
def test_what_cannot_be_adapted_is_refused_by_name_with_a_vit_that_can(model_size, reason, hub_offline):
    with pytest.raises(ValueError, match=reason) as error:
        ASTModel(CLASSES, model_size=model_size)
    nearest = str(error.value).rsplit(' ', 1)[1]
    assert find_backbone(nearest).timm_name == nearest


def test_a_name_that_nobody_knows_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="such as vit_base_patch16_224, got 'vit_bas_patch16_224'"):
        ASTModel(CLASSES, model_size='vit_bas_patch16_224')


def test_patches_that_leave_gaps_are_warned_of(caplog):
    ASTModel(CLASSES, 20, 10, 128, 64, imagenet_pretrain=False, model_size=NAMES[1])
    assert 'does not see' in caplog.text


def test_a_tag_names_the_weights_and_not_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    torch.manual_seed(0)
    vit = timm.create_model('vit_tiny_patch16_224')
    save_file(vit.state_dict(), tmp_path / 'vit_tiny_patch16_224.augreg_in21k.safetensors')
    name = 'vit_tiny_patch16_224.augreg_in21k'
    for settings in ({'model_size': name}, {'start': name}):
        model = ASTModel(CLASSES, verbose=False, **settings)
        assert torch.equal(model.v.blocks[3].mlp.fc1.weight, vit.blocks[3].mlp.fc1.weight)
        assert model.start_name == f'timm {name}'


def test_a_tag_that_timm_does_not_know_is_answered_with_those_that_it_knows(hub_offline):
    with pytest.raises(WeightsError, match='vit_tiny_patch16_224.augreg_in21k'):
        ASTModel(CLASSES, model_size='vit_tiny_patch16_224.nobody')
