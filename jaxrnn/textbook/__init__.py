"""Three documents on recurrent networks, equation by equation, in their own notation.

Each module implements one network of one document, forwards and backwards, with the document's
names, arguments, return values and shapes: features first, then examples, then time. Every gradient
is an explicit formula. Nothing here imports the rest of the library, so that it can be an
independent oracle for it; `jaxrnn.convert` translates the parameters.

Run ``jax.config.update("jax_enable_x64", True)`` before anything else: the formulas agree with
autodiff to 1e-12 in float64 only, and float64 arrays of numpy are refused while x64 is off.

- `jaxrnn.textbook.rnn`: "Recurrent Neural Network", the simple network (equations rnn-1, ...)
- `jaxrnn.textbook.lstm`: "Recurrent Neural Network", the LSTM (lstm-1, ...)
- `jaxrnn.textbook.head`: the softmax prediction and its cross-entropy, for both
- `jaxrnn.textbook.derivation`: "LSTM - Derivation of Back propagation through time" (step-1, ...)
- `jaxrnn.textbook.unfolded`: "Backpropagation Through Time - I" (net-1, ...)
- `jaxrnn.textbook.caches`: one step out of the caches of a sequence
- `jaxrnn.textbook.checks`: what all of them check first

The module docstrings list the equations; EQUATIONS.md says where each is implemented and tested,
README.md where a document is not right.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxrnn import textbook
    >>> shapes = {"Wax": (4, 3), "Waa": (4, 4), "Wya": (2, 4), "ba": (4, 1), "by": (2, 1)}
    >>> parameters = {key: jnp.full(shape, 0.1) for key, shape in shapes.items()}
    >>> a, y_pred, caches = textbook.rnn_forward(jnp.ones((3, 5, 7)), jnp.zeros((4, 5)), parameters)
    >>> y = jax.nn.one_hot(jnp.zeros((5, 7), int), 2, axis=0)
    >>> head = textbook.rnn_head_backward(y, y_pred, a, parameters)
    >>> gradients = textbook.rnn_backward(head["da"], caches)
    >>> gradients["dWaa"].shape, gradients["dx"].shape, head["dWya"].shape
    ((4, 4), (3, 5, 7), (2, 4))
"""

from jaxrnn.textbook.caches import cache_at
from jaxrnn.textbook.derivation import (
    STEP_PARAMETERS,
    StepCache,
    gradients_at_step,
    gradients_each_step,
    gradients_over_sequence,
    sequence_forward,
    squared_error,
    step_forward,
)
from jaxrnn.textbook.head import cross_entropy
from jaxrnn.textbook.lstm import (
    LSTM_PARAMETERS,
    LSTMCache,
    lstm_backward,
    lstm_cell_backward,
    lstm_cell_forward,
    lstm_forward,
    lstm_head_backward,
)
from jaxrnn.textbook.rnn import (
    RNN_PARAMETERS,
    RNNCache,
    rnn_backward,
    rnn_cell_backward,
    rnn_cell_forward,
    rnn_forward,
    rnn_head_backward,
)
from jaxrnn.textbook.unfolded import (
    NET_PARAMETERS,
    NetCache,
    net_backward,
    net_error,
    net_forward,
    net_paths,
    net_terms,
)

__all__ = [
    "LSTM_PARAMETERS",
    "NET_PARAMETERS",
    "RNN_PARAMETERS",
    "STEP_PARAMETERS",
    "LSTMCache",
    "NetCache",
    "RNNCache",
    "StepCache",
    "cache_at",
    "cross_entropy",
    "gradients_at_step",
    "gradients_each_step",
    "gradients_over_sequence",
    "lstm_backward",
    "lstm_cell_backward",
    "lstm_cell_forward",
    "lstm_forward",
    "lstm_head_backward",
    "net_backward",
    "net_error",
    "net_forward",
    "net_paths",
    "net_terms",
    "rnn_backward",
    "rnn_cell_backward",
    "rnn_cell_forward",
    "rnn_forward",
    "rnn_head_backward",
    "sequence_forward",
    "squared_error",
    "step_forward",
]
