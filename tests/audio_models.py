"""Build AudioMAE, SSAST and EAT in plain PyTorch; their weights have the authors' names.

Written from the papers: AudioMAE (arXiv:2207.06405), SSAST (arXiv:2110.09784), EAT
(arXiv:2401.03497). AudioMAE and EAT read images of time x frequency.
"""
import argparse

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 527
EPS = 1e-6


class Attention(nn.Module):
    """Computes softmax(q k^T / sqrt(d)) v."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        batch, tokens, dim = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(2, 3) / (dim // self.heads) ** 0.5).softmax(dim=3)
        return self.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A transformer block. It normalises before each branch, or after each sum, as in EAT."""

    def __init__(self, dim, heads, norm_after=False):
        super().__init__()
        self.norm_after = norm_after
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
        self.attn, self.mlp = Attention(dim, heads), Mlp(dim)

    def forward(self, x):
        if self.norm_after:
            x = self.norm1(x + self.attn(x))
            return self.norm2(x + self.mlp(x))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Projection(nn.Module):
    """Projects the patches of an image to vectors (batch, patches, dim), row by row."""

    def __init__(self, dim, patch_size):
        super().__init__()
        self.proj = nn.Conv2d(1, dim, patch_size, patch_size)

    def forward(self, image, strides=None):
        patches = F.conv2d(image, self.proj.weight, self.proj.bias, strides or self.proj.stride)
        return patches.flatten(2).transpose(1, 2)


def randomise(model, seed=0):
    """Make every weight random; return the model in evaluation mode."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.02 * torch.randn_like(value))
    return model.eval()


class AudioMAE(nn.Module):
    """The encoder of AudioMAE, and the classifier that fine-tuning adds."""

    def __init__(self, dim=768, heads=12, depth=12):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + 64 * 8, dim))
        self.patch_embed = Projection(dim, 16)
        self.blocks = nn.Sequential(*[Block(dim, heads) for _ in range(depth)])
        self.fc_norm, self.head = nn.LayerNorm(dim, eps=EPS), nn.Linear(dim, CLASSES)

    def features(self, x, positions=None, strides=None):
        """Return the mean of the patches (batch, dim) of spectrograms (batch, frames, mel bins).

        Args:
            positions: (1, patches, dim), time first; by default those of 1024 frames.
        """
        positions = self.pos_embed[:, 1:] if positions is None else positions
        tokens = self.patch_embed(x[:, None], strides) + positions
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        return self.blocks(torch.cat([first, tokens], dim=1))[:, 1:].mean(dim=1)

    def forward(self, x):
        return self.head(self.fc_norm(self.features(x)))

    def file(self, is_fine_tuned):
        """Return what the authors' code saves: weights, the optimizer's state, the command line."""
        state = self.state_dict()
        if not is_fine_tuned:
            dim = self.cls_token.shape[2]
            state = {name: value for name, value in state.items()
                     if not name.startswith(('fc_norm', 'head'))}
            state |= {'norm.weight': torch.ones(dim), 'norm.bias': torch.zeros(dim),
                      'mask_token': torch.zeros(1, 1, 8),
                      'decoder_embed.weight': torch.ones(8, dim),
                      'decoder_blocks.0.attn.qkv.weight': torch.ones(24, 8),
                      'decoder_pos_embed': torch.ones(1, 513, 8)}
        return {'model': state, 'optimizer': {'state': {0: {'exp_avg': torch.ones(3)}}},
                'epoch': 32, 'scaler': {'scale': 65536.0},
                'args': argparse.Namespace(blr=2e-4, finetune='x.pth')}


class SSAST(nn.Module):
    """The transformer of SSAST with its two class tokens."""

    def __init__(self, patch_size=(16, 16), dim=192, heads=3, depth=12):
        super().__init__()
        height, width = patch_size
        self.grid = 128 // height, 1024 // width
        self.v = nn.Module()
        self.v.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.v.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.v.pos_embed = nn.Parameter(torch.zeros(1, 2 + self.grid[0] * self.grid[1], dim))
        self.v.patch_embed = Projection(dim, patch_size)
        self.v.blocks = nn.Sequential(*[Block(dim, heads) for _ in range(depth)])
        self.v.norm = nn.LayerNorm(dim, eps=EPS)
        self.v.head, self.v.head_dist = nn.Linear(dim, 1000), nn.Linear(dim, 1000)

    def features(self, x, positions=None, strides=None):
        """Return the mean of the patches (batch, dim) of spectrograms (batch, frames, mel bins)."""
        v = self.v
        positions = v.pos_embed[:, 2:] if positions is None else positions
        tokens = v.patch_embed(x.transpose(1, 2)[:, None], strides)
        first = torch.cat([v.cls_token, v.dist_token], dim=1).expand(len(x), -1, -1)
        tokens = torch.cat([first + v.pos_embed[:, :2], tokens + positions], dim=1)
        return v.norm(v.blocks(tokens))[:, 2:].mean(dim=1)

    def file(self):
        """Return what the authors' code saves: weights of a model inside nn.DataParallel."""
        dim = self.v.cls_token.shape[2]
        state = {**self.state_dict(), 'p_input_fdim': torch.tensor(128),
                 'p_input_tdim': torch.tensor(1024), 'mask_embed': torch.ones(1, 1, dim)}
        for layer in ('cpredlayer', 'gpredlayer'):
            state |= {f'{layer}.0.weight': torch.ones(dim, dim), f'{layer}.0.bias': torch.ones(dim),
                      f'{layer}.2.weight': torch.ones(256, dim), f'{layer}.2.bias': torch.ones(256)}
        return {f'module.{name}': value for name, value in state.items()}


class EAT(nn.Module):
    """EAT, and the classifier that fine-tuning adds. It has positions for two minutes."""

    def __init__(self, dim=768, heads=12, depth=12, columns=768):
        super().__init__()
        encoder = nn.Module()
        encoder.extra_tokens = nn.Parameter(torch.zeros(1, 1, dim))
        encoder.local_encoder = Projection(dim, 16)
        encoder.fixed_positional_encoder = nn.Module()
        encoder.fixed_positional_encoder.positions = nn.Parameter(torch.zeros(1, columns * 8, dim))
        encoder.context_encoder = nn.Module()
        encoder.context_encoder.norm = nn.LayerNorm(dim, eps=EPS)
        self.modality_encoders = nn.ModuleDict({'IMAGE': encoder})
        self.blocks = nn.Sequential(*[Block(dim, heads, norm_after=True) for _ in range(depth)])
        self.fc_norm, self.head = nn.LayerNorm(dim, eps=EPS), nn.Linear(dim, CLASSES)

    @property
    def positions(self):
        """The positional embeddings (1, 768 * 8, dim), time first."""
        return self.modality_encoders['IMAGE'].fixed_positional_encoder.positions

    def features(self, x, positions=None, strides=None):
        """Return the class token (batch, dim) of spectrograms (batch, frames, mel bins)."""
        encoder = self.modality_encoders['IMAGE']
        patches = encoder.local_encoder(x[:, None], strides)
        if positions is None:
            positions = self.positions[:, :patches.shape[1]]
        first = encoder.extra_tokens.expand(len(x), -1, -1)
        tokens = encoder.context_encoder.norm(torch.cat([first, patches + positions], dim=1))
        return self.blocks(tokens)[:, 0]

    def forward(self, x):
        return self.head(self.fc_norm(self.features(x)))

    def file(self, is_fine_tuned, settings=None):
        """Return what fairseq saves: the weights, the settings, the state of training."""
        state = self.state_dict()
        encoder = {name: value for name, value in state.items()
                   if not name.startswith(('fc_norm', 'head'))}
        if is_fine_tuned:
            heads = {name: state[name] for name in state if name.startswith(('fc_norm', 'head'))}
            weights = {f'model.{name}': value for name, value in encoder.items()} | heads
        else:
            teacher = {name: value + 1 for name, value in encoder.items() if 'blocks' in name}
            weights = {**encoder, '_ema': teacher, 'recon_proj.weight': torch.ones(4, 4),
                       'modality_encoders.IMAGE.decoder.blocks.0.0.weight': torch.ones(4, 4)}
        return {'args': None, 'cfg': settings, 'model': weights, 'criterion': None,
                'optimizer_history': [{'num_updates': 5}], 'task_state': {}, 'extra_state': {},
                'last_optimizer_state': {'state': {}}}
