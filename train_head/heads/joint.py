"""Attention over a caption and the frames of a video together, with what pairs share computed once.

T texts, V videos, F frames, D embed_dim, H attention heads, N pairs, S = 1 + F.

The first block of a joint transformer sees features that do not yet depend on the pair, the last one is asked for its
first position alone. Both facts save products of D×D a pair without changing any result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.train_head.heads.layers import Attention, ResidualBlock


def attend_jointly(block: ResidualBlock, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """`x + attention(ln_1(x))` of `block` for the sequences `x = [text; frames]` of all pairs.

    Maps of attention run once a text and once a frame. A frame's attention to the frames of its video is known without
    the caption, whose arrival moves a share of it, of another size in each head, to itself: `o = ō + share (v_t - ō)`.
    The output map is linear, so it comes before that, too.

    Args:
        block: whose attention and first norm are used.
        text: (T, D), position added.
        frames: (V, F, D), positions added.
        mask: (V, F) bool, True = real, one at least a video.

    Returns:
        (T, V, S, D).
    """
    attn = block.attn
    texts, (videos, length, width) = len(text), frames.shape

    def project(x: Tensor) -> tuple[Tensor, ...]:
        projected = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
        return projected.unflatten(-1, (3, attn.heads, -1)).unbind(-3)

    query, key, value = project(text)  # (T, H, D/H)
    queries, keys, values = project(frames)  # (V, F, H, D/H)
    scale = query.shape[-1] ** -0.5
    # the caption reads itself and the frames
    to_itself = (query * key).sum(-1)[:, None, :, None].expand(-1, videos, -1, -1)  # (T, V, H, 1)
    to_frames = torch.einsum("thd,vfhd->tvhf", query, keys)
    to_frames = to_frames.masked_fill(~mask[:, None], -torch.inf)
    weights = (torch.cat((to_itself, to_frames), dim=-1) * scale).softmax(-1)  # (T, V, H, S)
    read = torch.einsum("tvhf,vfhd->tvhd", weights[..., 1:], values)
    read = read + weights[..., :1] * value.unsqueeze(1)  # (T, V, H, D/H)
    first = text[:, None] + attn.out_proj(read.flatten(2))  # (T, V, D)
    # a frame reads the frames, then the caption takes its share
    among = torch.einsum("vfhd,vghd->vfhg", queries, keys) * scale
    among = among.masked_fill(~mask[:, None, None], -torch.inf)  # (V, F, H, F)
    own = torch.einsum("vfhg,vghd->vfhd", among.softmax(-1), values)
    to_text = torch.einsum("vfhd,thd->tvfh", queries, key) * scale
    share = torch.sigmoid(to_text - among.logsumexp(-1))  # (T, V, F, H)
    out = attn.out_proj.weight.T.unflatten(0, (attn.heads, -1))  # (H, D/H, D)
    own = torch.einsum("vfhd,hde->vfhe", own, out)  # (V, F, H, D)
    value = torch.einsum("thd,hde->the", value, out)  # (T, H, D)
    lost = torch.einsum("tvfh,vfhe->tvfe", share, own)
    won = torch.bmm(share.flatten(1, 2), value).view(texts, videos, length, width)
    rest = frames + own.sum(2) + attn.out_proj.bias + won - lost  # (T, V, F, D)
    return torch.cat((first.unsqueeze(2), rest), dim=2)


def attend_from_first(attn: Attention, x: Tensor, mask: Tensor) -> Tensor:
    """What the first position of each sequence reads, without keys and values of the others.

    The maps of keys and values are linear, so the one query and the one result pass them instead of S entries. The bias
    of the keys moves all logits alike, that of the values is read whole: weights sum to 1.

    Args:
        attn: the attention.
        x: (N, S, D), normalised.
        mask: (N, S) bool, True = may be attended.

    Returns:
        (N, D).
    """
    to_query, to_key, to_value = attn.in_proj_weight.chunk(3)
    query_bias, _, value_bias = attn.in_proj_bias.chunk(3)
    query = F.linear(x[:, 0], to_query, query_bias).unflatten(-1, (attn.heads, -1))  # (N, H, D/H)
    sought = torch.einsum("nhd,hde->nhe", query, to_key.unflatten(0, (attn.heads, -1)))  # (N, H, D)
    logits = torch.bmm(sought, x.transpose(1, 2)) * query.shape[-1] ** -0.5
    weights = logits.masked_fill(~mask.unsqueeze(1), -torch.inf).softmax(-1)  # (N, H, S)
    read = torch.einsum("nhe,hde->nhd", torch.bmm(weights, x), to_value.unflatten(0, (attn.heads, -1)))
    return attn.out_proj(read.flatten(1) + value_bias)
