"""Register small ViTs in timm, one of each kind, so that tests with them take no time."""
from timm.models import register_model
from timm.models.deit import _create_deit
from timm.models.vision_transformer import _create_vision_transformer

DIM, HEADS, DEPTH = 48, 3, 2
SIZE = {'embed_dim': DIM, 'num_heads': HEADS, 'depth': DEPTH}
SMALL_IMAGE = 64  # height and width
# The arguments of each kind, besides SIZE.
KINDS = {
    'distilled': {},
    'one_token': {},
    'no_token': {'class_token': False, 'global_pool': 'avg'},
    'no_token_fc_norm_off': {'class_token': False, 'global_pool': 'avg', 'fc_norm': False},
    'registers': {'reg_tokens': 3, 'no_embed_class': True},
    'registers_mean': {'reg_tokens': 2, 'class_token': False, 'global_pool': 'avg',
                       'qk_norm': True},
    'layer_scale': {'init_values': 0.1, 'no_embed_class': True},
    'patch14': {'patch_size': 14, 'img_size': 56},
    'pre_norm': {'pre_norm': True},
    'attention_pool': {'class_token': False, 'global_pool': 'map'},
}
NAMES = [f'tiny_vit_{kind}' for kind in KINDS]


def register(kind: str, arguments: dict) -> None:
    """Register a kind in timm as tiny_vit_KIND."""
    name = f'tiny_vit_{kind}'

    def build(pretrained=False, **changes):
        settings = {'img_size': SMALL_IMAGE, 'patch_size': 16, **SIZE, **arguments, **changes}
        if kind == 'distilled':
            return _create_deit('deit_tiny_distilled_patch16_224', pretrained, distilled=True,
                                **settings)
        return _create_vision_transformer('vit_tiny_patch16_224', pretrained, **settings)

    build.__name__, build.__module__ = name, __name__
    register_model(build)


__all__: list[str] = []  # register_model appends the names
for kind, arguments in KINDS.items():
    register(kind, arguments)
