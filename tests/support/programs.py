"""Reading the programs that JAX traces and XLA compiles: loops, products, collectives."""

import collections
import math
import re
from typing import NamedTuple

import jax

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>.+?) (?P<op>[\w-]+)\(")
# the programs of these work on single elements
ELEMENTWISE = ("all-reduce", "map", "reduce", "reduce-scatter", "reduce-window", "scatter", "sort")


class Instruction(NamedTuple):
    """An instruction as it runs: within ``depth`` loops, ``times`` in all.

    ``operand`` is the shape of its first operand, where the program states it.
    """

    depth: int
    times: int
    op: str
    line: str
    operand: str


def computations(text):
    """The lines of each computation by name; the entry's are also those of None."""
    found, lines = {}, []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .* {", line)
        if head:
            lines = found[head[2]] = []
            if head[1]:
                found[None] = lines
        else:
            lines.append(line)
    return found


def instructions(compiled):
    """Every instruction of a compiled program, those of loop bodies and fusions included."""
    found = computations(compiled.as_text())

    def visit(name, depth, times):
        shapes = {}
        for line in found[name]:
            match = INSTRUCTION.match(line)
            if not match:
                continue
            shapes[match["name"]] = match["shape"]
            first = re.match(r"(?:\w+\[\S* )?%?([\w.-]+)", line[match.end() :])
            operand = shapes.get(first[1], "") if first else ""
            yield Instruction(depth, times, match["op"], line, operand)
            if match["op"] == "while":
                (trips,) = re.findall(r'known_trip_count\W+n\W+"?(\d+)', line)
                (body,) = re.findall(r"body=%?([\w.-]+)", line)
                yield from visit(body, depth + 1, times * int(trips))
            elif match["op"] not in ELEMENTWISE:
                for called in re.findall(r"(?:calls|to_apply)=%?([\w.-]+)", line):
                    yield from visit(called, depth, times)

    return list(visit(None, 0, 1))


def instruction_counts(compiled):
    """How often each instruction that makes an array stands in the program.

    Without names: neither its own nor those of operands, nor the places of both in tuples, whose
    order is that in which Python met them.
    """
    matches = map(INSTRUCTION.match, compiled.as_text().splitlines())
    lines = (match.string for match in matches if match and not match["shape"].startswith("("))
    nameless = re.compile(r", (metadata={[^}]*}|index=\d+)|%[\w.-]+|/\*index=\d+\*/")
    return collections.Counter(nameless.sub("", line) for line in lines)


def collectives(compiled):
    """How many collectives of each kind stand within how many loops: ``{(depth, op): count}``."""
    ops = [(i.depth, i.op.removesuffix("-start")) for i in instructions(compiled)]
    return dict(collections.Counter(at for at in ops if at[1] in COLLECTIVES))


def weights_made_at_every_step(compiled, steps, hidden):
    """The instructions that make a matrix of the size of a recurrent weight, or of a part of it.

    They stand in a loop over at least so many steps, and compute again what no step changes.
    """
    reading = ("parameter", "get-tuple-element", "bitcast")
    found = []
    for instruction in instructions(compiled):
        shape = INSTRUCTION.match(instruction.line)["shape"]
        sizes = [int(size) for size in re.findall(r"\d+", re.sub(r"^\w+|{.*", "", shape))]
        weight = len(sizes) > 1 and not any(size % hidden for size in sizes)
        if instruction.times >= steps and instruction.op not in reading and weight:
            found.append(instruction.line.strip())
    return found


def product_flops(compiled):
    """Multiplications in matrix products on one device, over all trips of all loops."""

    def sizes(shape):
        return [int(size) for size in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if size]

    total = 0
    for instruction in instructions(compiled):
        if instruction.op == "dot":
            result = INSTRUCTION.match(instruction.line)["shape"]
            (axes,) = re.findall(r"lhs_contracting_dims={([\d,]*)}", instruction.line)
            contracted = [sizes(instruction.operand)[int(axis)] for axis in axes.split(",") if axis]
            total += instruction.times * math.prod(sizes(result)) * math.prod(contracted)
    return total


def jaxprs_of(equation):
    for value in equation.params.values():
        for leaf in jax.tree.leaves(value, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns"):
                yield inner


def equations(jaxpr):
    """Every equation, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_of(equation):
            yield from equations(inner)


def outputs_of(loop):
    """Shapes of what a scan carries, and of what it stacks (which gains an axis)."""
    (body,) = jaxprs_of(loop)
    pairs = [
        (v.aval.shape, inner.aval.shape)
        for v, inner in zip(loop.outvars, body.outvars, strict=True)
    ]
    carried = [shape for shape, inner in pairs if len(shape) == len(inner)]
    return carried, [shape for shape, inner in pairs if len(shape) > len(inner)]


def carries(loop):
    return outputs_of(loop)[0]


def step_loops(f, *args, unroll=1):
    """The innermost scans of f's program, over so many steps an iteration: those for one platform.

    A program has the loops for every platform until it is compiled for one.
    """
    loops = [e for e in equations(jax.make_jaxpr(f)(*args).jaxpr) if e.primitive.name == "scan"]
    return [
        loop
        for loop in loops
        if not any(e.primitive.name == "scan" for j in jaxprs_of(loop) for e in equations(j))
        and loop.params["unroll"] == unroll
    ]


def products(loop):
    (body,) = jaxprs_of(loop)
    return sum(e.primitive.name == "dot_general" for e in equations(body))
