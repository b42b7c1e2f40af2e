"""PiSSA's start: the principal singular vectors of each matrix in place of a random A and a zero B.

With W = U S V^T, scale x B0 A0 is the part of W with the largest singular values, and PiSSA (Meng et al., 2024, arXiv
2404.02948) trains A and B on the residual base W - scale x B0 A0. Here the base stays as it is, in trainer and sampler,
and carries the difference scale x (B A - B0 A0), which is the same function. It is an adapter of rank 2 r:

    B A - B0 A0 = [B - B0, B0] [A; A - A0]

Unlike [B, -B0] [A; A0], these factors are as small as what was learned, so that rounding them to the dtype of the base
does not round the learning away, and the start is exactly the base. It failed under RL in the literature (PeRL: 0.2
where plain LoRA had 42.5).
"""

import torch


@torch.no_grad()
def principal_factors(weight_OI: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A0 (R, I) and B0 (O, R), fp32, with scale x B0 A0 the best approximation of the weight of that rank.

    Each singular value is shared evenly by its two vectors, whose sign makes the largest entry of A's row positive.
    """
    u_OM, s_M, v_MI = torch.linalg.svd(weight_OI.float(), full_matrices=False)
    root_R = (s_M[:rank] / scale).sqrt()
    a_RI, b_OR = v_MI[:rank] * root_R[:, None], u_OM[:, :rank] * root_R
    sign_R = a_RI.gather(1, a_RI.abs().argmax(1, keepdim=True)).squeeze(1).sign()
    return (a_RI * sign_R[:, None]).contiguous(), (b_OR * sign_R).contiguous()


def difference_factors(
    a: torch.Tensor, b: torch.Tensor, start_a: torch.Tensor, start_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors (..., 2R, I) and (..., O, 2R) of B A - B0 A0."""
    return torch.cat((a, a - start_a), -2), torch.cat((b - start_b, start_b), -1)
