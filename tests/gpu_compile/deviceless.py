"""Programs compiled for a GPU that is not there, and what they launch.

XLA's compiler for GPUs needs no driver: `jax.experimental.topologies` takes a description of the
chip (`h200.txtpb`, facts of the data sheet in XLA's own format) in the place of one. Without a
device nothing is autotuned, so the counts are exact, and nothing can be run or timed.
"""

import collections
import importlib.util
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import (
    AbstractDevice,
    AbstractMesh,
    NamedSharding,
    PartitionSpec,
    use_abstract_mesh,
)

CHIP = (Path(__file__).parent / "h200.txtpb").read_text()
# a thunk is what the host does at once: a launch, a copy, or a loop of thunks
THUNK = re.compile(r"(?P<indent> *)(?P<id>\d+): k(?P<kind>\w+)\s*(?:\[[^]]*\])?\s*(?P<rest>.*)")
# they hold others, or wait for them
STRUCTURE = {
    "AsyncDone",
    "AsyncStart",
    "CommandBuffer",
    "DynamicSliceFusion",
    "Sequential",
    "While",
}
COPIES = {"Copy", "DeviceToDeviceCopy"}
KERNELS = {"CustomKernel", "Kernel"}
ONE_THREAD = "grid: [1, 1, 1] threads: [1, 1, 1]"


class Launches(NamedTuple):
    """How often a program launches each: kernels, device copies, and the counters of its loops.

    ``others`` are thunks of any other kind, by name.
    """

    kernels: int
    copies: int
    counters: int
    others: dict[str, int]

    @property
    def total(self):
        return self.kernels + self.copies + self.counters + sum(self.others.values())


class Program(NamedTuple):
    """``outermost`` are the kinds of the thunks that no other one holds, as they are run."""

    launches: Launches
    temporaries: int
    outermost: list[str]
    text: str


class Thunk(NamedTuple):
    kind: str
    rest: str
    number: int
    loops: tuple[int, ...]


def topology():
    described = topologies.get_topology_desc(platform="cuda", target_config=CHIP, topology="1x1x1")
    return topologies.make_mesh(described, (1,), ("device",))


def for_the_gpu(jitted, *args):
    """The compiled `Program` of arrays, or of their shapes and dtypes."""
    on_the_chip = NamedSharding(topology(), PartitionSpec())
    like = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=on_the_chip), args
    )
    chip = AbstractDevice(on_the_chip.mesh.devices.flat[0].device_kind, None, "gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=chip)):
        lowered = jitted.lower(*like)
    (nvidia,) = importlib.util.find_spec("nvidia").submodule_search_locations
    with tempfile.TemporaryDirectory() as dump:
        compiled = lowered.compile(
            compiler_options={"xla_gpu_cuda_data_dir": f"{nvidia}/cu13", "xla_dump_to": dump}
        )

        def dumped(suffix):
            (path,) = Path(dump).glob(f"*.{suffix}")
            return path.read_text()

        return Program(
            launches=launches(
                dumped("thunk_sequence.txt"), dumped("thunk_metadata.txt"), compiled.as_text()
            ),
            temporaries=compiled.memory_analysis().temp_size_in_bytes,
            outermost=[
                thunk.kind
                for line, thunk in thunks(dumped("thunk_sequence_after_thunk_passes.txt"))
                if not line.startswith(" ")
            ],
            text=compiled.as_text(),
        )


def thunks(sequence):
    """Every thunk with its line, but those of loop conditions: a loop of known length has none."""
    within, in_condition = [], False
    for line in sequence.splitlines():
        if line.strip() in ("condition:", "body:"):
            in_condition = line.strip() == "condition:"
        match = THUNK.match(line)
        if not match or in_condition:
            continue
        indent, number, kind = len(match["indent"]), int(match["id"]), match["kind"]
        within = [held for held in within if held[0] < indent]
        loops = tuple(n for _, held_kind, n in within if held_kind == "While")
        yield line, Thunk(kind, match["rest"], number, loops)
        within.append((indent, kind, number))


def launches(sequence, metadata, hlo):
    """Count the thunks, those of a loop once for every iteration."""
    named = {
        int(number): name
        for name, number in re.findall(r'profile_annotation: "([^"]+)"\s*thunk_id: (\d+)', metadata)
    }
    iterations = {
        name: int(count)
        for name, count in re.findall(
            r"%?([\w.-]+) = [^\n]* while\([^\n]*known_trip_count\W+n\W+(\d+)", hlo
        )
    }
    counts = collections.Counter()
    for _, thunk in thunks(sequence):
        if thunk.kind in STRUCTURE:
            continue
        kind = thunk.kind
        if kind in COPIES:
            kind = "copies"
        elif kind in KERNELS:
            kind = "counters" if thunk.loops and ONE_THREAD in thunk.rest else "kernels"
        times = 1
        for loop in thunk.loops:
            times *= iterations[named[loop]]
        counts[kind] += times
    ours = {kind: counts.pop(kind, 0) for kind in ("kernels", "copies", "counters")}
    return Launches(**ours, others=dict(counts))
