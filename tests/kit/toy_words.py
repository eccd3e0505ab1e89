"""A toy source, method and encoder of another shape: rows of tokens to one vector."""

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import methods
from ssl_jax.contract.encoder import Encoder
from ssl_jax.contract.method import Field, Method
from ssl_jax.contract.source import Source
from ssl_jax.data import sources
from ssl_jax.devices import collectives
from ssl_jax.losses.spread import spread

LENGTH, WORDS, CLASSES, WIDTH = 12, 40, 4, 8
PAD = 0
FIELDS = (Field("ratio", 0.25, "share of the words that are hidden"),)


def open_words(name, split, data):
    """Sentences of their class's ten words, of 6 to 12 words, filled up with PAD."""
    n = 256 if split == "train" else 64
    words = np.array(["<pad>", *(f"word{i}" for i in range(1, WORDS))])

    def read(rows):
        rows = np.asarray(rows)
        tokens = np.zeros((len(rows), LENGTH), np.int32)
        for i, row in enumerate(rows.tolist()):
            random = np.random.Generator(np.random.Philox([split == "train", row]))
            length = random.integers(6, LENGTH + 1)
            tokens[i, :length] = 10 * (row % CLASSES) + random.integers(0, 10, length)
        tokens = np.where(tokens == 0, PAD, tokens)
        return {
            "tokens": tokens,
            "index": rows.astype(np.int32),
            "label": (rows % CLASSES).astype(np.int32),
        }

    fields = {"tokens": jax.ShapeDtypeStruct((LENGTH,), jnp.int32)}
    facts = {"vocabulary_size": WORDS, "vocabulary": words}
    names = tuple("abcd")
    return Source(f"words {split}", n, CLASSES, fields, read, list, names, facts)


KIND = sources.Kind(open_words, "words", lambda data, kind: None)


def make(config, run):
    """Guess hidden words from the mean of the others; the number of terms differs by row."""
    words, ratio = int(run.facts["vocabulary_size"]), config.method.ratio

    def views(key, batch, ctx):
        tokens = batch["tokens"]  # [b, L]
        keys = ctx.keys("mask", len(tokens))
        noise = jax.vmap(lambda k: jax.random.uniform(k, tokens.shape[1:]))(keys)
        hidden = (noise < ratio) & (tokens != PAD)
        return {"tokens": tokens, "hidden": hidden}

    def init(key, views):
        first, second = jax.random.split(key)
        table = jax.random.normal(first, (words, WIDTH))
        params = {"table": table, "head": jax.random.normal(second, (WIDTH, words)) / 4}
        return params, {"seen": jnp.zeros(())}

    def embed(table, tokens, seen):
        rows = table[tokens] * seen[..., None]  # [b, L, D]
        return rows.sum(1) / jnp.maximum(seen.sum(1), 1)[:, None]  # [b, D]

    def loss(params, state, views, ctx):
        tokens, hidden = views["tokens"], views["hidden"]
        z = embed(params["table"], tokens, (tokens != PAD) & ~hidden)
        scores = jax.nn.log_softmax(z @ params["head"])  # [b, D] @ [D, V]
        terms = -jnp.take_along_axis(scores, tokens, 1)  # [b, L]
        value = collectives.mean_of(terms, hidden, ctx.axis)
        count = collectives.psum(jnp.sum(hidden), ctx.axis)
        return value, ({"seen": state["seen"] + count}, spread(z, ctx.axis))

    def features(variables, batch):
        return embed(variables["table"], batch["tokens"], batch["tokens"] != PAD)

    words_encoder = Encoder(lambda params, state: {"table": params["table"]}, features)
    return Method(views=views, init=init, loss=loss, encoders={"words": words_encoder})


def register(put=dict.__setitem__):
    """Makes source and method known by name in this process."""
    put(sources.KINDS, "words", KIND)
    put(methods.METHODS, "words", make)
    put(methods.FIELDS, "words", FIELDS)


CONFIG = """
from ml_collections import ConfigDict
from ssl_jax.optim import optimizers
from ssl_jax.runs import config as configs


def get_config():
    c = configs.defaults()
    c.data.source = "words"
    c.method = ConfigDict({"name": "words", "ratio": 0.25})
    c.model = ConfigDict({"name": "table"})
    c.optimizer = optimizers.defaults()
    c.optimizer.name, c.optimizer.learning_rate, c.optimizer.momentum = "sgd", 8.0, 0.0
    c.batch, c.steps, c.log_every = 32, 12, 1
    c.monitor.every_steps, c.checkpoint.every_steps = 6, 4
    c.compile_cache = ""
    return c
"""
