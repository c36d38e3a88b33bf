"""What `benchmark.py --schemes` times: the wrappers that need no teacher.

Each is held against what its work costs in plain Keras, an image that is forwarded: the students'
own `fit`, a plain `fit`, a plain model that has the same heads. Batches are shuffled, with crops
and flips.
"""

import keras
from benchmark_measure import Case
from benchmark_measure import Ratio
from benchmark_measure import Timed
from benchmark_measure import augmented
from benchmark_measure import compiled
from benchmark_measure import fitting
from benchmark_measure import label_loss
from benchmark_measure import samples
from benchmark_measure import student
from benchmark_measure import wait

import keras_distill as kd

EXITS = ("stage1", "stage2")
COHORTS = (2, 4, 8)
PLAIN = "plain fit"
SAME_HEADS = "plain with the same heads"


def plain(settings, images, labels):
    model = compiled(settings, student(settings, "plain"))
    return fitting(model, augmented(settings, images, labels))


def cohort(settings, images, labels, size, **options):
    """A cohort of `size` equal students."""
    tag = "_".join(str(value) for value in (size, *options.values()))
    students = [student(settings, f"student_{i}_of_{tag}") for i in range(size)]
    wrapper = compiled(settings, kd.MutualLearner(students, **options))
    return fitting(wrapper, augmented(settings, images, labels))


def alone(settings, images, labels, size):
    """The same students one after the other."""
    data = augmented(settings, images, labels)
    students = [student(settings, f"alone_{i}_of_{size}") for i in range(size)]
    students = [compiled(settings, model) for model in students]

    def run():
        for model in students:
            model.fit(data, shuffle=False, verbose=0)
            wait(model)

    return run


def halves(settings, images, labels):
    """Batches of DLB."""
    augment = kd.data.crop_and_flip()
    return kd.data.overlap_batches(
        (images, labels), settings.batch_size // 2, augment=augment, seed=0
    )


def dlb(settings, images, labels, **options):
    model = kd.DLBModel(student(settings, f"dlb_{len(options)}"), **options)
    return fitting(compiled(settings, model), halves(settings, images, labels))


def of_pairs(settings, images, labels, wrapper, pipeline):
    """CS-KD and DDGSD: a batch of pairs."""
    model = compiled(settings, wrapper(student(settings, wrapper.__name__.lower())))
    data = pipeline(images, labels, settings.batch_size // 2, augment=kd.data.crop_and_flip())
    return fitting(model, data)


def progressive(settings, images, labels):
    """PS-KD."""
    model = kd.ProgressiveDistiller(student(settings, "progressive"), len(images))
    return fitting(compiled(settings, model), augmented(settings, images, labels, ids=True))


def own_teacher(settings, images, labels):
    """Be Your Own Teacher."""
    model = kd.SelfDistiller(student(settings, "own_teacher"), list(EXITS))
    return fitting(compiled(settings, model), augmented(settings, images, labels))


def same_heads(settings, images, labels):
    """A plain model with the exits of `own_teacher`, trained on labels."""
    wrapper = kd.SelfDistiller(student(settings, "same_heads"), list(EXITS))
    exits = [wrapper.exit(i) for i in range(len(EXITS) + 1)]
    model = keras.Model(exits[-1].inputs, [model.output for model in exits])
    data = augmented(settings, images, labels).map(lambda x, y: (x, (y,) * len(exits)))
    return fitting(compiled(settings, model, [label_loss() for _ in exits]), data)


def suite(settings):
    data = settings, *samples(settings)
    count = settings.count
    cases = {
        PLAIN: Case(lambda: plain(*data), count),
        "DLB": Case(lambda: dlb(*data), 2 * count),
        "DLB, two forwards": Case(lambda: dlb(*data, fused_forward=False), 2 * count),
        "CS-KD": Case(
            lambda: of_pairs(*data, kd.ClassWiseDistiller, kd.data.class_pairs), 2 * count
        ),
        "DDGSD": Case(
            lambda: of_pairs(*data, kd.DistortionDistiller, kd.data.two_views), 2 * count
        ),
        "PS-KD": Case(lambda: progressive(*data), count),
    }
    ratios = [Ratio(name, (PLAIN,)) for name in cases if name != PLAIN]
    cases[SAME_HEADS] = Case(lambda: same_heads(*data), count)
    cases["BYOT"] = Case(lambda: own_teacher(*data), count)
    ratios.append(Ratio("BYOT", (SAME_HEADS,)))
    for size in COHORTS:
        name, reference = f"cohort of {size}", f"{size} students alone"
        cases[reference] = Case(lambda size=size: alone(*data, size), size * count)
        cases[name] = Case(lambda size=size: cohort(*data, size), size * count)
        ratios.append(Ratio(name, (reference,)))
    sequential = "cohort of 2, sequential"
    make = lambda: cohort(*data, 2, update="sequential")  # noqa: E731
    cases[sequential] = Case(make, 2 * count, ("tensorflow",))
    ratios.append(Ratio(sequential, ("2 students alone",)))
    return Timed(cases, tuple(ratios), PLAIN)
