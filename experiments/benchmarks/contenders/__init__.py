"""The contenders, one module each, and what they have to say of themselves.

A contender is imported in its worker process and nowhere else: each pays for its own imports, has
its own thread pools, and one whose package is not installed is missing alone.
"""

OURS = "jaxrnn"
# what jaxrnn is compared with, the plain scan among them
PEERS = {
    "unroll_reference": "experiments.benchmarks.contenders.unroll_reference",
    "torch": "experiments.benchmarks.contenders.torch",
    "flax.nnx": "experiments.benchmarks.contenders.flax_nnx",
    "flax.linen": "experiments.benchmarks.contenders.flax_linen",
    "haiku": "experiments.benchmarks.contenders.haiku",
    "equinox": "experiments.benchmarks.contenders.equinox",
    "keras": "experiments.benchmarks.contenders.keras",
    "jax.experimental.rnn": "experiments.benchmarks.contenders.cudnn",
}
# the library once more, in another way
CORES = "jaxrnn-cores"
# what can be measured beside jaxrnn
CHOICES = (CORES, *PEERS)
# nobody's network: they tell how much of the time could be saved at all
PRODUCTS, RATE = "products in the loop", "matrix rate"
MODULES = {
    OURS: "experiments.benchmarks.contenders.jaxrnn",
    CORES: "experiments.benchmarks.contenders.jaxrnn_cores",
    PRODUCTS: "experiments.benchmarks.contenders.products",
    RATE: "experiments.benchmarks.contenders.matrix_rate",
    **PEERS,
}
