"""What an ASTModel computes on the way to its logits: embeddings over time, and attention.

x, lengths: as in ASTModel.forward.
"""
import torch
from timm.models.vision_transformer import Attention

from .ast_models import ASTModel
from .fast_blocks import mask_argument
from .padding import find_heard_tokens, make_mask, masked_mean


def frame_features(model: ASTModel, x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Return embeddings over time: the tokens of patches, averaged over frequency.

    Returns:
        (batch, t, dim), with one embedding per column of the patch grid. It is 0 if the column
        holds only padding.
    """
    heard = None if lengths is None else find_heard_tokens(model, x, lengths)
    prefix = model.v.num_prefix_tokens
    with model.autocast(x):
        tokens = all_tokens(model, x, heard)
    patches = model.leave_autocast(tokens[:, prefix:])
    if heard is not None:
        patches = patches * heard[:, prefix:, None]
    return unflatten_patches(model, patches, 1).mean(dim=1)  # (B, f, t, dim) -> (B, t, dim)


@torch.no_grad()
def attention(model: ASTModel, x: torch.Tensor, lengths: torch.Tensor | None
              ) -> list[torch.Tensor]:
    """Compute what the class tokens attend to in every block: softmax(q k^T / sqrt(d)).

    Returns:
        For each block a float32 tensor (batch, heads, class tokens, tokens). Each row sums to 1.
        The class tokens of a DeiT are [CLS] and [DIST]. If the head classifies the mean of the
        patches, there is one row, the mean of what the patches attend to. Tokens are the class
        tokens, other prefix tokens such as registers, and then the patches.
    """
    rows: list[torch.Tensor] = []
    count, prefix = model.num_class_tokens, model.v.num_prefix_tokens
    heard = None if lengths is None else find_heard_tokens(model, x, lengths)
    mask = None if heard is None else make_mask(heard, model.autocast_dtype or x.dtype)

    def record(attn: Attention, inputs: tuple[torch.Tensor]) -> None:
        if count:
            rows.append(attention_rows(attn, inputs[0], slice(count), mask))
            return
        of_patches = attention_rows(attn, inputs[0], slice(prefix, None), mask)
        if heard is None:
            rows.append(of_patches.mean(dim=2, keepdim=True))
        else:
            rows.append(masked_mean(of_patches, heard[:, None, prefix:]).unsqueeze(2))

    hooks = [block.get_submodule('attn').register_forward_pre_hook(record)
             for block in model.v.blocks]
    try:
        with model.autocast(x):
            all_tokens(model, x, heard)
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def attention_maps(model: ASTModel, x: torch.Tensor, lengths: torch.Tensor | None
                   ) -> list[tuple[torch.Tensor, ...]]:
    """Return what the class tokens attend to as maps over the spectrogram.

    Returns:
        For each block a float32 tensor (batch, heads, f, t) per row of attention().
    """
    prefix = model.v.num_prefix_tokens
    return [tuple(unflatten_patches(model, token, 2) for token in rows[..., prefix:].unbind(2))
            for rows in attention(model, x, lengths)]


def all_tokens(model: ASTModel, x: torch.Tensor, heard: torch.Tensor | None) -> torch.Tensor:
    """Return all tokens (B, tokens, dim) of timm's own pass, which runs hooks.

    Args:
        heard: see padding.find_heard_tokens; None for all.
    """
    mask = None if heard is None else make_mask(heard, model.autocast_dtype or x.dtype)
    return model.v.forward_features(model.as_image(x), **mask_argument(mask))


def unflatten_patches(model: ASTModel, values: torch.Tensor, axis: int) -> torch.Tensor:
    """Turn an axis of f * t patches into two, (f, t).

    Raises:
        ValueError: if Patchout has left out some of them.
    """
    f, t = model.grid
    if values.shape[axis] != f * t:
        raise ValueError(f'{values.shape[axis]} of {f} x {t} patches are there, since keep_patches '
                         f'leaves out the others in training: call model.eval() before')
    return values.unflatten(axis, (f, t))


def attention_rows(attn: Attention, x: torch.Tensor, chosen: slice,
                   mask: torch.Tensor | None = None) -> torch.Tensor:
    """Compute the attention of some tokens in a timm Attention that is given x.

    Args:
        x: (B, tokens, dim).
        chosen: the tokens whose attention is computed.
        mask: added to the scores, (B, 1, 1, tokens), or None.

    Returns:
        (B, heads, chosen tokens, tokens), float32.
    """
    qkv = attn.qkv(x).float().unflatten(2, (3, attn.num_heads, -1))  # (B, tokens, 3, heads, d)
    query = attn.q_norm(qkv[:, chosen, 0].transpose(1, 2))  # (B, heads, chosen, d)
    key = attn.k_norm(qkv[:, :, 1].transpose(1, 2))  # (B, heads, tokens, d)
    with torch.autocast(x.device.type, enabled=False):
        scores = attn.scale * query @ key.transpose(2, 3)
        return (scores if mask is None else scores + mask).softmax(dim=-1)
