"""Methods of a config in PyTorch: views by kornia, losses, targets and optimizers."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.torch_networks import Decoder, Prototypes, ViT, encoder, mlp


class Method(NamedTuple):
    """What a step is made of.

    Attributes:
      modules: with the parameters that are learned, and those that follow them.
      policies: kornia's, which `draw` calls.
      draw: images [b, C, h, w] -> views.
      before: () -> None, before the forward pass.
      loss: views -> (loss [], what `after` wants).
      after: (what `loss` kept) -> None, after the optimizer.
    """

    modules: nn.ModuleList
    policies: nn.ModuleList
    draw: Callable[[torch.Tensor], Any]
    before: Callable[[], None]
    loss: Callable[[Any], tuple[torch.Tensor, Any]]
    after: Callable[[Any], None]


def policy(p: dict[str, Any], cropping: str) -> nn.Sequential:
    """kornia's augmentation of a `ssl_jax.augment.Policy`, drawn for every image on its own.

    Args:
      p: fields of the policy.
      cropping: kornia's cropping_mode.
    """
    size, each = (p["size"], p["size"]), {"same_on_batch": False}
    layers = [
        K.RandomResizedCrop(
            size,
            scale=tuple(p["area"]),
            ratio=tuple(p["aspect"]),
            resample=p["interpolation"],
            align_corners=False,
            cropping_mode=cropping,
            **each,
        )
    ]
    if p["flip"]:
        layers.append(K.RandomHorizontalFlip(p=p["flip"], **each))
    if p["jitter"]:
        strengths = [p[k] for k in ("brightness", "contrast", "saturation", "hue")]
        layers.append(K.ColorJitter(*strengths, p=p["jitter"], **each))
    if p["gray"]:
        layers.append(K.RandomGrayscale(p=p["gray"], **each))
    radius = p["size"] // 20 if p["blur_radius"] == -1 else p["blur_radius"]
    if p["blur"] and radius:
        kernel = (2 * radius + 1, 2 * radius + 1)
        layers.append(K.RandomGaussianBlur(kernel, tuple(p["sigma"]), p=p["blur"], **each))
    if p["solarize"]:
        t = p["threshold"]
        layers.append(K.RandomSolarize((t, t), (0.0, 0.0), p=p["solarize"], **each))
    if any(p["mean"]):
        layers.append(K.Normalize(torch.tensor(p["mean"]), torch.tensor(p["std"])))
    return nn.Sequential(*layers)


def simclr(c: dict[str, Any], cropping: str) -> Method:
    """SimCLR; the loss is that of ssl_jax.losses.contrastive."""
    net, width = encoder(c["model"])
    net = nn.Sequential(net, mlp(c["method"]["projector"], width))
    both = policy(c["views"]["both"], cropping)
    temperature, scale = c["method"]["temperature"], c["method"]["loss_scale"]

    def loss(x):
        z = F.normalize(net(x).float(), dim=1)
        n = len(z)
        own = torch.eye(n, dtype=torch.bool, device=z.device)
        logits = (z @ z.T / temperature).masked_fill(own, -torch.inf)
        other = torch.arange(n, device=z.device).roll(n // 2)
        return scale * F.cross_entropy(logits, other), None

    draw = lambda x: both(torch.cat([x, x]))  # noqa: E731
    own = nn.ModuleList([both])
    return Method(nn.ModuleList([net]), own, draw, lambda: None, loss, lambda kept: None)


def moco_v2(c: dict[str, Any], cropping: str) -> Method:
    """MoCo v2 on one device, where a shuffle is without effect."""
    m = c["method"]
    net, width = encoder(c["model"])
    online = nn.Sequential(net, mlp(m["projector"], width))
    target = copy.deepcopy(online).requires_grad_(False)
    both = policy(c["views"]["both"], cropping)
    modules = nn.ModuleList([online, target])
    queue = F.normalize(torch.randn(m["queue"], m["projector"]["widths"][-1]), dim=1)
    modules.register_buffer("queue", queue)
    place = 0

    def before():
        with torch.no_grad():
            torch._foreach_lerp_(
                list(target.parameters()), list(online.parameters()), 1 - m["momentum"]
            )

    def loss(x):
        x_q, x_k = x.chunk(2)
        q = F.normalize(online(x_q).float(), dim=1)
        with torch.no_grad():
            k = F.normalize(target(x_k).float(), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ modules.queue.T], 1)
        positive = torch.zeros(len(q), dtype=torch.long, device=q.device)
        return F.cross_entropy(logits / m["temperature"], positive), k

    def after(k):
        nonlocal place
        modules.queue[place : place + len(k)] = k
        place = (place + len(k)) % len(modules.queue)

    own = nn.ModuleList([both])
    return Method(modules, own, lambda x: both(torch.cat([x, x])), before, loss, after)


def dino(c: dict[str, Any], cropping: str) -> Method:
    """DINO with multi-crop."""
    m, local = c["method"], c["method"]["local_crops"]
    net, width = encoder(c["model"])
    student = nn.ModuleList([net, Prototypes(m["projector"], width)])
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    modules = nn.ModuleList([student, teacher])
    modules.register_buffer("centre", torch.zeros(m["projector"]["out"]))
    policies = {name: policy(view, cropping) for name, view in c["views"].items()}

    def draw(x):
        big = torch.cat([policies["global_1"](x), policies["global_2"](x)])
        return big, policies["local"](x.repeat(local, 1, 1, 1))

    def loss(views):
        big, small = views
        with torch.no_grad():
            t = teacher[1](teacher[0](big)).float()  # [2·b, K]
            targets = ((t - modules.centre) / m["teacher_temperature"]).softmax(-1)
        s = student[1](torch.cat([student[0](big), student[0](small)])).float()
        log_p = (s / m["student_temperature"]).log_softmax(-1)
        v, b = 2 + local, len(big) // 2
        # [g, b, K] · [v, b, K] -> [g, v]
        pairs = -torch.einsum("gbk,vbk->gv", targets.view(2, b, -1), log_p.view(v, b, -1))
        other = 1 - torch.eye(2, v, device=s.device)
        return (pairs * other).sum() / (b * 2 * (v - 1)), t.mean(0)

    def after(mean):
        with torch.no_grad():
            modules.centre.lerp_(mean, 1 - m["centre_momentum"])
            torch._foreach_lerp_(
                list(teacher.parameters()), list(student.parameters()), 1 - m["momentum"]
            )

    own = nn.ModuleList(policies.values())
    return Method(modules, own, draw, lambda: None, loss, after)


def mae(c: dict[str, Any], cropping: str) -> Method:
    """MAE with random masks and normalised pixels."""
    net = ViT(c["model"])
    patches, p = net.grid**2, net.patch
    visible = patches - int(patches * c["method"]["ratio"])
    decoder = Decoder(c["method"]["decoder"], net.features, patches, p * p * 3)
    view = policy(c["views"]["image"], cropping)

    def loss(x):
        order = torch.rand(len(x), patches, device=x.device).argsort(1)
        restore = order.argsort(1)
        tokens = net.embed(x)
        seen = order[:, :visible, None].expand(-1, -1, tokens.shape[2])
        prediction = decoder(net.encode(tokens.gather(1, seen)), restore).float()
        target = F.unfold(x, p, stride=p).transpose(1, 2)  # [b, N, C·p·p]
        variance, mean = torch.var_mean(target, -1, keepdim=True)
        error = (prediction - (target - mean) / (variance + 1e-6).sqrt()).square().mean(-1)
        hidden = restore >= visible
        return (error * hidden).sum() / hidden.sum(), None

    modules = nn.ModuleList([net, decoder])
    own = nn.ModuleList([view])
    return Method(modules, own, view, lambda: None, loss, lambda kept: None)


METHODS = {"simclr": simclr, "moco_v2": moco_v2, "dino": dino, "mae": mae}


def optimizer(fields: dict[str, Any], params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD or AdamW, fused; biases and norms without decay where the config says so."""
    free = [p for p in params if p.ndim < 2 and fields["decay_exclude"]]
    ids = set(map(id, free))
    decay = fields["weight_decay"]
    groups = [
        {"params": [p for p in params if id(p) not in ids], "weight_decay": decay},
        {"params": free, "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    rate = fields["learning_rate"]
    if fields["name"] == "sgd":
        return torch.optim.SGD(groups, rate, momentum=fields["momentum"], fused=True)
    return torch.optim.AdamW(groups, rate, betas=tuple(fields["betas"]), fused=True)
