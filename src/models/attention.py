"""What the tokens of an ASTModel attend to."""
import torch
from timm.models.vision_transformer import Attention

from .ast_models import ASTModel, masked_mean


@torch.no_grad()
def compute_attention(model: ASTModel, x: torch.Tensor, lengths: torch.Tensor | None
                      ) -> list[torch.Tensor]:
    """Compute what the tokens that the head classifies attend to; see ASTModel.attention."""
    rows: list[torch.Tensor] = []
    count, prefix = model.num_class_tokens, model.v.num_prefix_tokens
    heard = model.find_heard_tokens(lengths, x)
    mask = model.make_mask(heard, x)

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
            model.all_tokens(x, heard)
    finally:
        for hook in hooks:
            hook.remove()
    return rows


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
