"""The peer of benchmarks/step.py: the same step in PyTorch, views by kornia. Without JAX.

    echo CONFIG_AS_JSON | python -m benchmarks.step_torch --measure [--device gpu]

Networks, heads and losses are those of the config, written as PyTorch's users write them: modules
of torch.nn, scaled_dot_product_attention, channels_last for convolutions, fused optimizers.
"""

import argparse
import copy
import ctypes
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

if __name__ == "__main__":  # before anything allocates; see step.py
    libc = ctypes.CDLL("libc.so.6")
    for setting in ((-4, 0), (-1, -1), (-8, 1)):
        libc.mallopt(*setting)

import kornia
import kornia.augmentation as K
import torch
import torch.nn.functional as F
from torch import nn

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
# Kernel, stride, max pooling.
STEMS = {"imagenet": (7, 2, True), "cifar": (3, 1, False), "small": (3, 2, False)}
# Width, depth, heads.
VITS = {"vit_tiny": (192, 12, 3), "vit_small": (384, 12, 6), "vit_base": (768, 12, 12)}


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


def choose(policies: nn.ModuleList, draw: Callable[[], Any]) -> str:
    """Lets kornia draw its random numbers where it is faster, or possible: 'cpu' or 'cuda'.

    (They are drawn on the CPU, and sent, until the policy itself is moved; moved, some of its
    generators fail.)
    """
    seconds = {}
    for place in ("cuda", "cpu"):
        try:
            policies.to(place)
            for i in range(4):
                if i == 1:
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                draw()
            torch.cuda.synchronize()
            seconds[place] = time.perf_counter() - start
        except (RuntimeError, TypeError, ValueError) as error:
            print(f"kornia's draws on {place}: {error}", file=sys.stderr)
    best = min(seconds, key=seconds.get)
    policies.to(best)
    return best


def measure(c: dict[str, Any], steps: int, each: int, device: str, compiled: bool) -> dict:
    """The peer's step on a fixed batch; as benchmarks.step.measure.

    Args:
      c: config.
      steps: how often the clock is looked at.
      each: steps between two looks.
      device: 'cpu' or 'cuda'.
      compiled: by torch.compile.
    """
    began = time.perf_counter()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(c["seed"])
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
        # TF32 for float32 (kornia's views, the losses), as XLA does where nothing else is asked.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    # On CPU kornia's slices are the faster crop, on a GPU a loop over images is none.
    method = METHODS[c["method"]["name"]](c, "slice" if device == "cpu" else "resample")
    layout = torch.channels_last if c["model"]["name"].startswith("resnet") else None
    method.modules.to(device)
    if layout:
        method.modules.to(memory_format=layout)
    params = [p for p in method.modules.parameters() if p.requires_grad]
    rule = optimizer(c["optimizer"], params)
    clip = c["optimizer"]["clip_per_parameter"]
    half = c["model"]["dtype"] == "bfloat16"
    loss_of = torch.compile(method.loss) if compiled else method.loss
    side, channels = c["data"]["size"], c["data"]["channels"]
    shape = (c["batch"], channels, side, side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

    def draw():
        with torch.no_grad():
            views = method.draw(images.float().div_(255))
        return views.contiguous(memory_format=layout) if layout else views

    draws = choose(method.policies, draw) if device == "cuda" else "cpu"

    def step():
        method.before()
        views = draw()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss, kept = loss_of(views)
        loss.backward()
        if clip:
            gradients = [p.grad for p in params]
            lengths = torch._foreach_norm(gradients)
            torch._foreach_mul_(gradients, [(clip / (n + 1e-6)).clamp(max=1) for n in lengths])
        rule.step()
        rule.zero_grad(set_to_none=True)
        method.after(kept)
        return loss

    started = time.perf_counter() - began
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    first = time.perf_counter() - began - started  # compiles

    def timed(f):
        seconds = []
        for i in range(steps + 2):
            if i == 2:
                cpu = time.process_time()
                if device == "cuda":  # what cuDNN took to try algorithms is not the step's
                    torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            for _ in range(each):
                out = f()
            if device == "cuda":
                torch.cuda.synchronize()
            if i > 1:
                seconds.append((time.perf_counter() - start) / each)
        return statistics.median(seconds), (time.process_time() - cpu) / steps / each, out

    seconds, cpu, loss = timed(step)
    if device == "cuda":
        memory, name = torch.cuda.max_memory_allocated(), torch.cuda.get_device_name()
        limit = torch.cuda.mem_get_info()[1]
    else:
        with open("/proc/self/status") as status:
            memory = next(int(x.split()[1]) * 1024 for x in status if x.startswith("VmHWM"))
        name, limit = f"{torch.get_num_threads()} threads", None
    if not math.isfinite(loss.item()):
        sys.exit(f"the peer's loss is {loss.item()}")
    return {
        "seconds": seconds,
        "cpu": cpu,
        "views": timed(draw)[0],
        "parameters": sum(p.numel() for p in params),
        "memory": memory,
        "limit": limit,
        "started": started,
        "compiled": first,
        "loss": loss.item(),
        "draws": draws,
        "device": name,
        "versions": {m.__name__: m.__version__ for m in (torch, kornia)},
    }


def main() -> None:
    """Reads a config, measures, prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", required=True)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--each", type=int, help="steps between two looks at the clock")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a GPU need not be there")
    a = parser.parse_args()
    there = torch.cuda.is_available()
    if a.device == "gpu" and not there and not a.tiny:
        sys.exit("PyTorch finds no GPU here")
    device = "cuda" if a.device == "gpu" and there else "cpu"
    c = json.loads(sys.stdin.read())
    each = a.each or (1 if a.device == "cpu" else 10)
    print(json.dumps(measure(c, a.steps, each, device, a.compile or device == "cuda")))


if __name__ == "__main__":
    main()
