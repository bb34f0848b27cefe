"""Transformer-XL (Dai et al. 2019): a language model with relative positions and a memory of the previous segments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from models.adaptive import AdaptiveInput, AdaptiveSoftmax

Count = Annotated[int, "1 <= x"]
Share = Annotated[float, "0 <= x < 1"]


def transformer_xl(
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    layers: Count,
    width: Count,
    heads: Count,
    head_width: Count,
    inner: Count,
    dropout: Share,
    attention_dropout: Share,
    memory: Annotated[int, "0 <= x"],
    test_memory: Annotated[int, "0 <= x"],
    cutoffs: Sequence[int],
    divisor: Count,
    init_std: Annotated[float, "0 < x"],
    projection_std: Annotated[float, "0 < x"],
) -> nn.Module:
    """The network that `TransformerXL` describes, over `num_classes` words; `in_shape` is (tokens of a segment,).

    As conf/model/transformer_xl.yaml has it, with the 267,735 words of WikiText-103, it has 285,167,482 parameters.
    `memory`: tokens of the past that are kept in training, `test_memory` in evaluation. Weights start normal with
    `init_std`, projections of embeddings with `projection_std`, the gains of layer norms around 1, biases at 0, as in
    NVIDIA's public code. ValueError for an odd width.
    """
    if width % 2:
        raise ValueError(f"width = {width} should be even: half of a position's encoding is sines, half cosines")
    model = TransformerXL(
        words=num_classes,
        length=in_shape[0],
        layers=layers,
        width=width,
        heads=heads,
        head_width=head_width,
        inner=inner,
        dropout=dropout,
        attention_dropout=attention_dropout,
        memory=memory,
        test_memory=test_memory,
        cutoffs=cutoffs,
        divisor=divisor,
    )
    model.start(init_std, projection_std)
    return model


class TransformerXL(nn.Module):
    """Layers of relative attention and a feed-forward network, each with a residual connection, then a layer norm.

    Modules that methods name: "layers.L.attention.qkv" (queries, keys and values), "layers.L.attention.position" (the
    projection of relative positions), "layers.L.attention.out", "layers.L.feed_forward.0" and ".3",
    "embedding.projections.I" and "softmax.projection" (of an adaptive softmax). The embeddings "embedding.tables.I",
    which are also the softmax's weights, are no linear layers: methods leave them dense unless told otherwise.
    """

    def __init__(
        self,
        *,
        words: int,
        length: int,
        layers: int,
        width: int,
        heads: int,
        head_width: int,
        inner: int,
        dropout: float,
        attention_dropout: float,
        memory: int,
        test_memory: int,
        cutoffs: Sequence[int],
        divisor: int,
    ) -> None:
        super().__init__()
        self.length, self.memory, self.test_memory = length, memory, test_memory
        self.embedding = AdaptiveInput(words, width, cutoffs, divisor)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(width, heads, head_width, inner, dropout, attention_dropout) for _ in range(layers)
        )
        # u and v of equation 5 (section 3.3), the same in all layers.
        self.content_bias = nn.Parameter(torch.empty(heads, head_width))
        self.position_bias = nn.Parameter(torch.empty(heads, head_width))
        self.softmax = AdaptiveSoftmax(self.embedding)

    def forward(
        self, words: Tensor, targets: Tensor | None = None, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(losses (n, tokens), the next memory); without targets log-probabilities (n, tokens, all words) first.

        `words`, `targets`: int64 (n, tokens); negative targets have the loss 0. `memory`: what an earlier call gave,
        (layers, n, tokens kept, width): the inputs of all layers, through which no gradient flows.
        """
        x = self.drop(self.embedding(words))
        length, past = words.shape[1], 0 if memory is None else memory.shape[2]
        positions = self.drop(encoding(past + length, x.shape[-1], x.device, x.dtype))
        hidden_ahead = torch.ones(length, past + length, dtype=torch.bool, device=x.device).triu(past + 1)
        inputs = []
        for index, layer in enumerate(self.layers):
            inputs.append(x.detach())
            kept = None if memory is None else memory[index]
            x = layer(x, positions, self.content_bias, self.position_bias, hidden_ahead, kept)
        hidden = self.drop(x).flatten(0, 1)
        flat = None if targets is None else targets.flatten()
        found = self.softmax(hidden, self.embedding, flat).view(*words.shape, *([-1] if targets is None else []))
        return found, self._next(memory, torch.stack([each.to(found.dtype) for each in inputs]))

    def _next(self, memory: Tensor | None, inputs: Tensor) -> Tensor:
        """The last tokens of what was remembered and of what came; (layers, n, tokens, width)."""
        limit = self.memory if self.training else self.test_memory
        whole = inputs if memory is None else torch.cat([memory, inputs], dim=2)
        return whole[:, :, max(whole.shape[2] - limit, 0) :].clone()

    def example(self, in_shape: Sequence[int]) -> tuple[Tensor, None, Tensor]:
        """Arguments of `forward` for counting operations: one segment, every word's probability, a full memory."""
        like = self.content_bias
        words = torch.zeros(1, in_shape[0], dtype=torch.int64, device=like.device)
        width = self.embedding.width
        return words, None, torch.zeros(len(self.layers), 1, self.memory, width, dtype=like.dtype, device=like.device)

    def start(self, std: float, projection_std: float) -> None:
        """Draw the initial weights; see `transformer_xl`."""
        for name, parameter in self.named_parameters():
            if "norm" in name and name.endswith("weight"):
                nn.init.normal_(parameter, 1.0, std)
            elif "projection" in name:
                nn.init.normal_(parameter, 0.0, projection_std)
            elif name.endswith(("weight", "content_bias", "position_bias")):
                nn.init.normal_(parameter, 0.0, std)
            else:
                nn.init.zeros_(parameter)


class Layer(nn.Module):
    """Relative attention, then two linear layers with a ReLU between, each added to its input and normalised."""

    def __init__(
        self, width: int, heads: int, head_width: int, inner: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.attention = RelativeAttention(width, heads, head_width, attention_dropout)
        self.attention_drop = nn.Dropout(dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, inner),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(inner, width),
            nn.Dropout(dropout),
        )
        self.feed_forward_norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, positions: Tensor, u: Tensor, v: Tensor, hidden_ahead: Tensor, memory: Tensor | None
    ) -> Tensor:
        seen = x if memory is None else torch.cat([memory.to(x.dtype), x], dim=1)
        x = self.attention_norm(x + self.attention_drop(self.attention(x, seen, positions, u, v, hidden_ahead)))
        return self.feed_forward_norm(x + self.feed_forward(x))


class RelativeAttention(nn.Module):
    """Section 3.3: the score of query i and key j is ((q_i + u) k_j + (q_i + v) W r_(i-j)) / sqrt(head width)."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.position = nn.Linear(width, heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor, positions: Tensor, u: Tensor, v: Tensor, hidden_ahead: Tensor) -> Tensor:
        """(n, tokens, width) -> the same. `seen`: memory and x; `positions`: encodings of the distances, falling to 0.

        `hidden_ahead`: (tokens, tokens seen), true where the key comes after the query.
        """
        # One product for all three, as in the official code: the queries of the memory are computed for nothing.
        q, k, values = (self._split(part) for part in self.qkv(seen).chunk(3, dim=-1))
        q = q[:, :, -x.shape[1] :]
        r = self._split(self.position(positions).unsqueeze(0))
        by_content = (q + u[:, None]) @ k.transpose(-1, -2)
        by_position = shifted((q + v[:, None]) @ r.transpose(-1, -2))
        scores = (by_content + by_position) / math.sqrt(self.head_width)
        weights = self.drop(scores.masked_fill(hidden_ahead, -math.inf).softmax(-1))
        return self.out((weights @ values).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """(n, tokens, heads * head width) -> (n, heads, tokens, head width)."""
        return x.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)


def encoding(count: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The sinusoid encodings of the distances count - 1, ..., 0: (count, width), sines first, then cosines."""
    distances = torch.arange(count - 1, -1, -1, dtype=torch.float32, device=device)
    frequencies = 10000 ** (-torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
    angles = torch.outer(distances, frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)


def shifted(scores: Tensor) -> Tensor:
    """Scores by distance (..., queries, keys), whose last column is distance 0 -> scores by key.

    Row i, column j of the result is the distance between query i and key j, the last key being the last query's own
    (appendix B). Entries of keys after their query are meaningless.
    """
    *some, queries, keys = scores.shape
    padded = torch.cat([scores.new_zeros(*some, queries, 1), scores], dim=-1)
    return padded.view(*some, keys + 1, queries)[..., 1:, :].reshape(*some, queries, keys)
