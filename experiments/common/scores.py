"""A run's figures of merit, each beside its baselines and its goal."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Score(NamedTuple):
    """A figure of merit on the test set, and those of simpler methods on the same set.

    - ``name``: of the network, ``"LSTM, 64 units"``.
    - ``measure``: ``"accuracy"``, ``"bits per character"``.
    - ``goal``: the value to reach; None where none is set.
    - ``format``: of the values, as in ``format(value, ".1%")``.
    - ``samples``: of an accuracy, how many were classified: the errors are shown, too.
    """

    name: str
    measure: str
    value: float
    baselines: Mapping[str, float]
    goal: float | None = None
    higher_is_better: bool = False
    format: str = ".3f"
    samples: int | None = None

    def reached(self) -> bool:
        """Whether the goal is reached; a NaN reaches none."""
        if self.goal is None:
            return True
        return self.value >= self.goal if self.higher_is_better else self.value <= self.goal

    def ranked(self) -> list[tuple[str, float]]:
        """The network and its baselines, the best first."""
        sign = -1 if self.higher_is_better else 1
        methods = [(f"{self.name} (this run)", self.value), *self.baselines.items()]
        return sorted(methods, key=lambda method: sign * method[1])

    def best_baseline(self) -> tuple[str, float] | None:
        """The best of the simpler methods, by name, and its value."""
        best = max if self.higher_is_better else min
        return best(self.baselines.items(), key=lambda method: method[1], default=None)

    def shown(self, value: float) -> str:
        """A value in the format of this measure."""
        return format(value, self.format)

    def verdict(self) -> str:
        """Where the network loses, and whether it reaches its goal, in words."""
        sign = 1 if self.higher_is_better else -1
        better = [name for name, value in self.baselines.items() if sign * (value - self.value) > 0]
        equal = [name for name, value in self.baselines.items() if value == self.value]
        words = []
        if better:
            words.append(f"The network LOSES to: {'; '.join(better)}.")
        if equal:
            words.append(f"The network only equals: {'; '.join(equal)}.")
        if not words and self.baselines:
            words.append("The network beats all of them.")
        if self.goal is not None:
            end = "reached" if self.reached() else "NOT reached"
            words.append(f"Its goal, {self.shown(self.goal)}, is {end}.")
        return " ".join(words)

    def table(self) -> str:
        """The ranking and the verdict, as lines to print."""
        rows = self.ranked()
        width = max(len(name) for name, _ in rows)
        lines = [
            f"{self.measure:{width + 2}}"
            + (f"    errors of {self.samples}" if self.samples else "")
        ]
        for name, value in rows:
            errors = "" if self.samples is None else f"   {round((1 - value) * self.samples):4}"
            lines.append(f"  {name:{width}}  {self.shown(value):>8}{errors}")
        return "\n".join([*lines, self.verdict()])

    def as_json(self) -> dict[str, Any]:
        """The fields, as result.json holds them."""
        return {**self._asdict(), "baselines": dict(self.baselines), "reached": self.reached()}


def from_json(saved: Mapping[str, Any]) -> Score:
    """A score of result.json."""
    return Score(**{name: saved[name] for name in Score._fields})
