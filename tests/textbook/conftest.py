"""The worked examples of the textbook, each solved once."""

import pytest
import worked_examples


@pytest.fixture
def rnn():
    return worked_examples.rnn_example()


@pytest.fixture
def lstm():
    return worked_examples.lstm_example()


@pytest.fixture
def step():
    return worked_examples.step_example()


@pytest.fixture
def net():
    return worked_examples.net_example()
