"""Networks and heads of a config, written as PyTorch's users write them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
# Kernel, stride, max pooling.
STEMS = {"imagenet": (7, 2, True), "cifar": (3, 1, False), "small": (3, 2, False)}
# Width, depth, heads.
VITS = {"vit_tiny": (192, 12, 3), "vit_small": (384, 12, 6), "vit_base": (768, 12, 12)}


def convolution(i: int, o: int, k: int, stride: int = 1) -> nn.Conv2d:
    """Without bias, padded by (k − 1) / 2."""
    return nn.Conv2d(i, o, k, stride, (k - 1) // 2, bias=False)


class Residual(nn.Module):
    """A basic or a bottleneck block of torchvision's ResNet.

    Args:
      i: channels in.
      planes: width of the block.
      stride: of its first 3×3.
      bottleneck: 1×1, 3×3, 1×1 in place of 3×3, 3×3.
    """

    def __init__(self, i: int, planes: int, stride: int, bottleneck: bool):
        super().__init__()
        o = 4 * planes if bottleneck else planes
        if bottleneck:
            layers = [(i, planes, 1, 1), (planes, planes, 3, stride), (planes, o, 1, 1)]
        else:
            layers = [(i, o, 3, stride), (o, o, 3, 1)]
        body = []
        for layer in layers:
            body += [convolution(*layer), nn.BatchNorm2d(layer[1]), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*body[:-1])
        self.shortcut = nn.Identity()
        if stride != 1 or i != o:
            self.shortcut = nn.Sequential(convolution(i, o, 1, stride), nn.BatchNorm2d(o))

    def forward(self, x):
        """[b, i, h, w] -> [b, o, h / stride, w / stride]."""
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


def resnet(model: dict[str, Any]) -> tuple[nn.Module, int]:
    """(network [b, C, h, w] -> features [b, d], d)."""
    blocks = model.get("blocks") or BLOCKS[model["name"]]
    width, bottleneck = model.get("width", 64), model["name"] == "resnet50"
    kernel, stride, pool = STEMS[model["stem"]]
    layers = [convolution(3, width, kernel, stride), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    layers += [nn.MaxPool2d(3, 2, 1)] if pool else []
    i = width
    for stage, count in enumerate(blocks):
        for j in range(count):
            planes = width * 2**stage
            layers.append(Residual(i, planes, 2 if stage and not j else 1, bottleneck))
            i = 4 * planes if bottleneck else planes
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), i


class Block(nn.Module):
    """A pre-norm block of a transformer, with stochastic depth."""

    def __init__(self, width: int, heads: int, mlp: float, rate: float):
        super().__init__()
        self.heads, self.rate = heads, rate
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = int(width * mlp)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def drop(self, x):
        """Whole examples set to 0, in training."""
        if not self.training or not self.rate:
            return x
        keep = torch.rand(len(x), 1, 1, device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1 - self.rate)

    def forward(self, x):
        """[b, T, D] -> [b, T, D]."""
        b, t, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [b, h, T, e] each
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        x = x + self.drop(self.proj(y))
        return x + self.drop(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """As ssl_jax.models.vit: class token, learned or fixed positions, norm at the end.

    (Fixed ones are noise here, which costs as much as sines.)
    """

    def __init__(self, model: dict[str, Any]):
        super().__init__()
        width, depth, heads = VITS.get(model["name"], (384, 12, 6))
        width, depth = model.get("width", width), model.get("depth", depth)
        heads, rate = model.get("heads", heads), model.get("drop_path", 0.0)
        self.patch, self.grid = model["patch"], model["size"] // model["patch"]
        self.features = width
        self.embedding = nn.Conv2d(3, width, self.patch, self.patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        positions = 0.02 * torch.randn(1, 1 + self.grid**2, width)
        if model["positions"] == "learned":
            self.positions = nn.Parameter(positions)
        else:
            self.register_buffer("positions", positions)
        rates = [rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.Sequential(*[Block(width, heads, model.get("mlp", 4.0), r) for r in rates])
        self.norm = nn.LayerNorm(width, 1e-6)

    def embed(self, x):
        """[b, 3, h, w] -> patch tokens with their positions [b, N, D]."""
        tokens = self.embedding(x).flatten(2).transpose(1, 2)
        positions, side = self.positions[:, 1:], x.shape[2] // self.patch
        if side != self.grid:
            table = positions.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
            table = F.interpolate(table, size=(side, side), mode="bicubic")
            positions = table.flatten(2).transpose(1, 2)
        return tokens + positions

    def encode(self, tokens):
        """[b, n, D] -> [b, 1 + n, D], normalised."""
        token = (self.token + self.positions[:, :1]).expand(len(tokens), -1, -1)
        return self.norm(self.blocks(torch.cat([token, tokens], 1)))

    def forward(self, x):
        """[b, 3, h, w] -> the class token [b, D]."""
        return self.encode(self.embed(x))[:, 0]


def encoder(model: dict[str, Any]) -> tuple[nn.Module, int]:
    """(network, width of its features)."""
    if model["name"].startswith("resnet"):
        return resnet(model)
    vit = ViT(model)
    return vit, vit.features


def mlp(head: dict[str, Any], width: int) -> nn.Sequential:
    """ssl_jax.models.heads.MLP for inputs of `width`."""
    layers = []
    fields = zip(head["widths"], head["norms"], head["biases"], strict=True)
    for i, (o, norm, bias) in enumerate(fields):
        layers += [nn.ReLU(inplace=True)] if i else []
        layers.append(nn.Linear(width, o, bias=bias))
        if norm != "none":
            layers.append(nn.BatchNorm1d(o, affine=norm != "plain"))
        if norm == "scale":
            layers[-1].bias.requires_grad_(False)
        width = o
    return nn.Sequential(*layers)


class Prototypes(nn.Module):
    """DINO's head: an MLP to a bottleneck, unit length, unit prototypes."""

    def __init__(self, head: dict[str, Any], width: int):
        super().__init__()
        widths = [width, *[head["hidden"]] * (head["layers"] - 1), head["bottleneck"]]
        layers = []
        for i, o in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(i, o), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.v = nn.Parameter(torch.rand(head["out"], head["bottleneck"]) - 0.5)

    def forward(self, x):
        """[b, d] -> cosines [b, out]."""
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(self.v, dim=1))


class Decoder(nn.Module):
    """MAE's decoder."""

    def __init__(self, decoder: dict[str, Any], width: int, patches: int, out: int):
        super().__init__()
        own = decoder["width"]
        self.embed, self.predict = nn.Linear(width, own), nn.Linear(own, out)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, own))
        self.register_buffer("positions", 0.02 * torch.randn(1, 1 + patches, own))
        blocks = [
            Block(own, decoder["heads"], decoder["mlp"], 0.0) for _ in range(decoder["depth"])
        ]
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(own, 1e-6)

    def forward(self, tokens, restore):
        """[b, 1 + V, D], place of every patch among visible and hidden [b, N] -> [b, N, out]."""
        x = self.embed(tokens)
        hidden = self.mask_token.expand(len(x), restore.shape[1] + 1 - x.shape[1], -1)
        patches = torch.cat([x[:, 1:], hidden.to(x.dtype)], 1)
        patches = patches.gather(1, restore[..., None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], patches], 1) + self.positions
        return self.predict(self.norm(self.blocks(x))[:, 1:])
