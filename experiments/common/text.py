"""Text that several reports share: the names of cells and stages, and Markdown tables."""

from collections.abc import Sequence

CELL_NAMES = {
    "elman": "Elman",
    "lstm": "LSTM",
    "gru": "GRU",
    "elman_relu": "Elman, ReLU",
    "leaky": "leaky",
    "peephole_lstm": "LSTM, peepholes",
    "coupled_lstm": "LSTM, coupled gates",
    "slstm": "sLSTM",
    "layer_norm_lstm": "LSTM, layer norm",
    "reset_before_gru": "GRU, reset before",
    "layer_norm_gru": "GRU, layer norm",
    "mgu": "MGU",
    "projected": "projected(LSTM)",
    "heads": "heads(LSTM)",
    "recurrent_dropout": "recurrent_dropout(LSTM)",
    "zoneout": "zoneout(LSTM)",
    "clipped": "clipped(LSTM)",
    "clip_adjoint": "clip_adjoint(LSTM)",
    "with_dtypes": "with_dtypes(LSTM)",
}
# of a network: the keys of result.json, and words
STAGES = {"initial": "at initialisation", "trained": "after training"}


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> str:
    """Lines of a Markdown table: ``words`` columns to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if n < words else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if n < words else "-" * (width - 1) + ":" for n, width in enumerate(widths)]
    return "\n".join(map(line, [header, rule, *rows]))
