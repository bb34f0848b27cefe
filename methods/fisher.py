"""The inverse of an empirical Fisher matrix, block by block, without ever holding a block."""

from __future__ import annotations

import torch
from torch import Tensor


class InverseFisher:
    """B = damping F^-1 of one layer, F = damping I + 1/m sum_j g_j g_j^T over m gradients, within diagonal blocks.

    Blocks are `block` consecutive weights of the flat layer (the last one may be smaller); what F has between blocks is
    left out. The gradients come one by one (`add`) and Woodbury's identity updates the inverse (Singh & Alistarh 2020,
    equation 9): F^-1 <- F^-1 - F^-1 g g^T F^-1 / (m + g^T F^-1 g), from I / damping. With h = g / sqrt(m damping) and
    B that is B <- B - u u^T, u = B h / sqrt(1 + h^T B h), from I, so that B = I - sum_j u_j u_j^T: the m vectors u,
    4 m bytes per weight, say the same as the blocks, 4 `block` bytes per weight, and B times a vector is two products
    with them. Entries are scaled to at most 1. All blocks of the layer go through one step together.

    `weights`: the layer's, for their number, type and device; `samples`: m. Vectors are flat like them.
    """

    def __init__(self, weights: Tensor, *, samples: int, block: int, damping: float) -> None:
        self.size, self.block = weights.numel(), min(block, weights.numel())
        self.blocks = -(-self.size // self.block)
        self.scale = (samples * damping) ** -0.5
        self.factors = weights.new_empty(self.blocks, samples, self.block)
        self.squares = weights.new_zeros(self.blocks, self.block)
        self.seen = 0

    @staticmethod
    def bytes_of(size: int, samples: int, block: int) -> int:
        """The memory of a layer's factors, its last block filled up."""
        block = min(block, size)
        return 4 * samples * block * -(-size // block)

    def add(self, gradient: Tensor) -> None:
        """Take in the next gradient."""
        h = self._in_blocks(gradient) * self.scale
        u = self._times(h)
        # h^T B h is never negative; rounded, it might be.
        u /= ((h * u).sum(1, keepdim=True).clamp_(min=0) + 1).sqrt_()
        self.factors[:, self.seen] = u
        self.squares += h.square()
        self.seen += 1

    def diagonal(self) -> Tensor:
        """The diagonal of B. ValueError when rounding has left nothing of it, at condition numbers of 1e8 or so."""
        diagonal = 1 - torch.linalg.vector_norm(self.factors[:, : self.seen], dim=1).square_()
        if not diagonal.isfinite().all():
            raise ValueError("the Fisher matrix is too near to a singular one to be inverted; raise method.damping")
        # [F^-1]_qq >= 1 / F_qq in every positive definite matrix: where rounding goes below, that is nearer.
        return torch.maximum(diagonal, 1 / (1 + self.squares)).view(-1)[: self.size]

    def times(self, vector: Tensor) -> Tensor:
        """B times a vector."""
        return self._times(self._in_blocks(vector)).view(-1)[: self.size]

    def _times(self, vector: Tensor) -> Tensor:
        """B times a vector in blocks."""
        factors = self.factors[:, : self.seen]
        shares = torch.bmm(factors, vector[:, :, None])
        return vector - torch.bmm(shares.transpose(1, 2), factors)[:, 0]

    def _in_blocks(self, vector: Tensor) -> Tensor:
        """(blocks, block), zero past the layer's end."""
        padded = self.factors.new_zeros(self.blocks * self.block)
        padded[: self.size] = vector
        return padded.view(self.blocks, self.block)
