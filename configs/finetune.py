"""Fine-tuning: the whole network of a checkpoint, trained with labels.

    python -m ssl_jax.main --config configs/finetune.py --config.checkpoint=RUN

with RUN the workdir of a run on the digits (runs/quickstart), and for ImageNet with

    configs/finetune.py:mae_vit_base         RUN of configs/mae.py:imagenet
    configs/finetune.py:resnet50_semi_1pct   RUN of configs/swav.py:imagenet
    configs/finetune.py:resnet50_semi_10pct  the same

With a share of the labels: --config.labels=0.1. The supervised baseline, the same network and
recipe from fresh parameters: --config.scratch=True.

Expected:
    digits               top-1 on the hold-out (800 training images, --config.split=holdout), where
                         the learning rate was chosen among 3e-4, 1e-3 and 3e-3 (nothing else was
                         tuned); one seed, two CPU cores.
                         Encoder of configs/barlow_twins.py:digits: 98.5 with all labels, 98.0 with
                         10%, 87.9 with 1% (30 images); from scratch with all labels 98.5, no less.
                         Encoder of configs/mae.py:digits, 300 steps, all labels: 94.5
    mae_vit_base         83.57 ± 0.08, 4 seeds, after 1,600 epochs of MAE and with RandAugment
                         (cited: FINETUNE.md of facebookresearch/mae; not yet measured here)
    resnet50_semi_*      not yet measured
"""

from ml_collections import ConfigDict, config_dict

from ssl_jax.augment import policies
from ssl_jax.evaluate import probing
from ssl_jax.optim import optimizers


def defaults() -> ConfigDict:
    """All fields, without a recipe."""
    c = probing.defaults("finetune")
    c.seed = 0  # of the head (or all parameters), data order and augmentation
    c.scratch = False  # fresh parameters and no layer decay: the supervised baseline
    c.labels = 1.0  # share of the labels of every class: 0.01, 0.1; the rest is not looked at
    c.shots = config_dict.placeholder(int)  # or so many labels of every class
    c.labels_seed = 0  # of the list of those labels: its draw
    c.steps = config_dict.placeholder(int)  # optimizer steps; wins over epochs
    c.epochs = config_dict.placeholder(float)  # passes; few labels are repeated to fill a batch
    c.recipe = "refuse"  # where the warm-up is as long as the training: refuse | tenth | keep
    c.batch = 128  # images of one optimizer step over all devices and micro-batches
    c.accumulate = 1  # micro-batches that a step is computed in
    c.parallel = "shard_map"  # shard_map | pmap | jit
    c.log_every = 10  # steps
    c.monitor_every = 0  # steps between two looks at the judged rows, for the curve; 0: at the end
    c.checkpoint_every = 1_000  # steps; 0: at the end

    c.model = ConfigDict()  # None: as in the run
    c.model.drop_path = config_dict.placeholder(float)  # ViT: of the last block, from 0 linearly
    c.model.pool = config_dict.placeholder(str)  # ViT: token | mean
    c.model.positions = config_dict.placeholder(str)  # ViT: learned, from the run's fixed ones
    c.fresh = ()  # regular expressions of encoder parameters that start afresh
    c.head = "zeros"  # initial values of the classifier: zeros | mae: N(0, 2e-5²) | torch
    c.interpolation = "bilinear"  # of the fixed view that is judged: bilinear | bicubic

    c.view = view("supervised")  # the random view; size and normalisation are the run's
    c.erasing = ConfigDict()
    c.erasing.probability = 0.0  # of a rectangle of noise in an image
    c.mixing = ConfigDict()
    c.mixing.mixup = 0.0  # α of mixup; 0: none
    c.mixing.cutmix = 0.0  # α of CutMix; 0: none
    c.mixing.probability = 1.0  # that a batch is mixed
    c.mixing.switch = 0.5  # probability of CutMix where both are on
    c.mixing.mode = "batch"  # batch: one λ for `group` rows; elem: one an image
    c.mixing.group = 32  # as MAE, whose processes have 32 rows; 0: the whole batch
    c.label_smoothing = 0.0

    c.layer_decay = 1.0  # updates × this for every layer further from the classifier
    c.head_learning_rate = config_dict.placeholder(float)  # None: the encoder's
    c.optimizer = optimizers.defaults()
    # As MAE's groups: neither biases and norms nor class token and positions decay.
    c.optimizer.decay_exclude = (*optimizers.BIAS_AND_NORM, r"(^|/)(class_token|positions)$")
    return c


def view(name: str, **changes) -> ConfigDict:
    """Fields of `config.view`: a policy without size and normalisation."""
    fields = policies.make(name, 224, **changes)._asdict()
    return ConfigDict({k: v for k, v in fields.items() if k not in ("size", "mean", "std")})


def digits() -> ConfigDict:
    """A short training for small networks on the digits, the same for every share of labels."""
    c = defaults()
    c.steps = 600
    c.view = view("digits")
    c.label_smoothing = 0.1
    c.layer_decay = 0.75
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup_fraction = 0.1
    c.optimizer.weight_decay = 0.05
    return c


def mae_vit_base() -> ConfigDict:
    """MAE's ViT-B on ImageNet: the command in FINETUNE.md and the defaults of main_finetune.py.

    Missing is RandAugment (rand-m9-mstd0.5-inc1), which this library does not have. As there, the
    mean of the patches is read, and the LayerNorm after it starts afresh. ViT-L: 50 epochs,
    learning rate 1e-3, layer decay 0.75, drop path 0.2.
    """
    c = defaults()
    c.epochs = 100.0
    c.batch = 1024
    c.train_examples = 2_000_000
    c.log_every = 50
    c.model.drop_path = 0.1
    c.model.pool = "mean"
    c.model.positions = "learned"  # pos_embed has a gradient in models_vit.py, unlike in MAE
    c.fresh = (r"^norm/",)
    c.head = "mae"
    c.interpolation = "bicubic"
    c.view = view("supervised", interpolation="bicubic")
    c.erasing.probability = 0.25
    c.mixing.mixup = 0.8
    c.mixing.cutmix = 1.0
    c.label_smoothing = 0.1
    c.layer_decay = 0.65
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 5e-4
    c.optimizer.scaling = "linear"
    c.optimizer.warmup_epochs = 5.0
    c.optimizer.final = 5e-4  # min_lr 1e-6 at the peak 5e-4 · 1,024 / 256
    c.optimizer.weight_decay = 0.05
    return c


def resnet50_semi_1pct() -> ConfigDict:
    """SwAV's ResNet-50 with 1% of ImageNet's labels: eval_semisup.py as its README calls it.

    The images are SimCLR's list, which SwAV takes as well and TFDS has. (SimCLR itself fine-tunes
    from the first layer of its projector, which this job does not read.)
    """
    c = resnet50_semi_10pct()
    c.data.source = "tfds:imagenet2012_subset/1pct"
    c.optimizer.learning_rate = 0.02
    c.head_learning_rate = 5.0
    return c


def resnet50_semi_10pct() -> ConfigDict:
    """The same with 10% of the labels: the defaults of eval_semisup.py."""
    c = defaults()
    c.epochs = 20.0
    c.batch = 256
    c.train_examples = 2_000_000
    c.data.source = "tfds:imagenet2012_subset/10pct"
    c.data.test_split = "validation"
    c.head = "torch"
    c.optimizer.name = "sgd"
    c.optimizer.momentum = 0.9
    c.optimizer.learning_rate = 0.01
    c.head_learning_rate = 0.2
    c.optimizer.schedule = "step"
    c.optimizer.milestones = (12.0, 16.0)
    c.optimizer.factor = 0.2
    return c


PRESETS = {
    "digits": digits,
    "mae_vit_base": mae_vit_base,
    "resnet50_semi_1pct": resnet50_semi_1pct,
    "resnet50_semi_10pct": resnet50_semi_10pct,
}


def get_config(preset: str = "digits") -> ConfigDict:
    """The config of a preset."""
    return PRESETS[preset]()
