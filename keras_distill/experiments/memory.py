"""The experiment on memory: what each scheme needs at most, each training a process of its own."""

import dataclasses

from keras_distill.experiments.claims import Claim
from keras_distill.experiments.claims import Measure
from keras_distill.experiments.claims import every
from keras_distill.experiments.claims import no_larger
from keras_distill.experiments.claims import recalled
from keras_distill.experiments.claims import smaller
from keras_distill.experiments.definitions import Experiment
from keras_distill.experiments.definitions import Scale
from keras_distill.experiments.definitions import entry
from keras_distill.experiments.definitions import file_name
from keras_distill.experiments.mutual import TINY
from keras_distill.experiments.pages import column
from keras_distill.experiments.self_distillation import DLB
from keras_distill.recipes import peak_memory
from keras_distill.recipes import schemes
from keras_distill.recipes.schemes import Options
from keras_distill.reporting import drawing_rows
from keras_distill.reporting import tables

TRAINING = Measure("training_mib", "MiB", 1.0)
RECIPES = (
    "baseline",
    "dlb",
    "ps_kd",
    "cs_kd",
    "self_distillation",
    "tf_kd_self",
    "mutual",
    "distillation",
)
CLOSE = 30.0  # MiB, of the several hundred that a training of this size takes
# ResNets, as smaller networks take less than the libraries' own work space.
SMALL = Options(student="resnet20", teacher="resnet20", ensemble=1, epochs=2, batch_size=128)


def _measure(place):
    scale, said = place.scale, dataclasses.asdict(place.scale.options)
    recipes = scale.more["recipes"]
    records = {name: [] for name in recipes}
    for seed in place.seeds:  # rounds: one after the other, so that all see the same machine
        for name in recipes:
            record = place.stored(
                file_name(name, seed),
                lambda name=name, seed=seed: peak_memory.measure(
                    name, said, scale.dataset, place.data_dir, scale.limit, seed
                ),
            )
            records[name].append({**record, "seed": seed})
            place.say(f"{name}, round {seed}: {record['training_mib']:.0f} MiB above the start")
    entries = [
        entry(name, schemes.named(name).summary.rstrip("."), records[name]) for name in recipes
    ]
    options = scale.options.filled()
    words = (
        f"`{options.student}`, {options.batch_size} images forwarded with a gradient in a step, "
        f"{options.epochs} epochs, for DLB half of them; each seed is a process"
    )
    return {"comparison": entries, "networks": words}


def _figure(results):
    rows = []
    for found in results["comparison"]:
        values = [record["training_mib"] for record in found["records"]]
        mean, error = tables.mean_and_error(values)
        rows.append({"name": found["name"], "values": values, "mean": mean, "error": error})
    words = "MiB at the highest, above imports and data"
    return drawing_rows.rows([{"title": "", "rows": rows}], words)


MEMORY = Experiment(
    name="memory",
    title="Peak memory of self-distillation",
    question="What does each scheme need of memory beside the training of the student alone?",
    scales={
        "tiny": Scale("digits", TINY, 1, limit=60, test_limit=40, more={"recipes": ("dlb",)}),
        "small": Scale(
            "cifar10", SMALL, 3, limit=1000, test_limit=10, minutes=9, more={"recipes": RECIPES}
        ),
        "full": Scale(
            "cifar10",
            dataclasses.replace(SMALL, student="resnet110", teacher="resnet110"),
            3,
            limit=5000,
            test_limit=10,
            more={"recipes": RECIPES},
        ),
    },
    measure=_measure,
    claims=(
        Claim(
            f"DLB needs hardly more memory than the student alone ({CLOSE:g} MiB at most).",
            recalled(DLB),
            no_larger("dlb", "baseline", CLOSE, TRAINING),
        ),
        Claim(
            "DLB needs less memory than the schemes that keep a second network.",
            recalled(DLB),
            every(*(smaller("dlb", name, TRAINING) for name in ("tf_kd_self", "mutual"))),
        ),
    ),
    notes=(
        "Resident memory of the process on a processor. On a GPU, where activations lie on the "
        "device, this says little.",
        "Allocation alone makes differences of some tens of MiB: DLB, which drops the last short "
        "batch, lies below the student alone, and KD, with a second network, level with it. The "
        "first verdict says no more than that DLB's cost is below that.",
        "A teacher is not trained first: its memory is what it takes beside the student.",
    ),
    columns={
        "MiB above the start": column("training_mib", 0),
        "MiB in all": column("peak_mib", 0),
    },
    figure=_figure,
)
