"""Experiments on self-distillation and DLB: at equal budgets, with mixed images, wrong labels."""

import dataclasses

import keras

from keras_distill.data.mixing import keras_augment
from keras_distill.experiments.claims import BEST
from keras_distill.experiments.claims import Claim
from keras_distill.experiments.claims import every
from keras_distill.experiments.claims import larger
from keras_distill.experiments.claims import recalled
from keras_distill.experiments.definitions import Experiment
from keras_distill.experiments.definitions import Row
from keras_distill.experiments.definitions import rows
from keras_distill.experiments.definitions import trained
from keras_distill.experiments.mutual import HERE
from keras_distill.experiments.mutual import scales
from keras_distill.experiments.pages import column
from keras_distill.recipes import paper
from keras_distill.recipes import schemes
from keras_distill.recipes.schemes import Options
from keras_distill.recipes.tasks import Task

DLB = "Shen et al., 2022, https://arxiv.org/abs/2203.16172"
SMALL = Options(student="small-8-16-32", looks=5)
FULL = Options(setting="paper", student="resnet32")
NOISES = (0.2, 0.4, 0.6)
SHIFTS = "with random shifts"
# Of one number Keras draws between 0 and it: half of the images would not be erased, and CutMix's
# alpha would change from batch to batch.
ALWAYS = 1.0, 1.0
SHARES = 0.02, 0.33  # of an image, erased


def twice(options):
    """The options of a row that trains for twice the epochs."""
    small = options.setting == "small"
    epochs = options.epochs or (schemes.SMALL if small else schemes.named("baseline").paper).epochs
    return dataclasses.replace(options, epochs=2 * epochs)


def _shifted(options):
    return dataclasses.replace(options, augment=True, flip=False)


def _scheme(name, what, recipe=None, **options):
    return Row(name, what, trained(recipe or name), **options)


SELF = Experiment(
    name="self_distillation",
    title="Self-distillation: DLB and its rivals",
    question="Which way of learning from itself makes a small network better? The student forwards "
    "as many images with a gradient in all rows but baseline_twice; tf_kd_self needs a training "
    "before, which the images in all tell.",
    scales=scales(5, 17, SMALL, FULL),
    measure=rows(
        _scheme("baseline", "The student alone."),
        Row("baseline_twice", "Alone for twice the epochs.", trained("baseline", change=twice)),
        _scheme("label_smoothing", "On labels of which a tenth is spread over all classes."),
        _scheme("tf_kd_self", "From an earlier training of the same network: two trainings."),
        _scheme("tf_kd_virtual", "From a virtual teacher, 0.99 on the true class."),
        _scheme("ps_kd", "On labels softened by what it said in the epoch before."),
        _scheme("cs_kd", "Two images of one class are predicted alike; one has no gradient."),
        _scheme("self_distillation", "Exits at earlier stages learn from the last one (BYOT)."),
        _scheme("dlb", "From what it said of the last half batch; half the epochs."),
        Row(
            "baseline",
            "Alone, on randomly shifted images.",
            trained("baseline", change=_shifted),
            group=SHIFTS,
        ),
        Row(
            "ddgsd",
            "Two shifted views are predicted alike; half the epochs.",
            trained("ddgsd", change=_shifted),
            group=SHIFTS,
        ),
        Row("dlb", "DLB on shifted images.", trained("dlb", change=_shifted), group=SHIFTS),
    ),
    claims=(
        Claim(
            "DLB is better than the same network alone at as many forwarded images, plain and with "
            "random shifts.",
            DLB,
            every(larger("dlb", "baseline"), larger(f"{SHIFTS}/dlb", f"{SHIFTS}/baseline")),
        ),
        Claim(
            "DLB is better than the other schemes.",
            recalled(DLB),
            every(
                *(
                    larger("dlb", other)
                    for other in (
                        "label_smoothing",
                        "tf_kd_self",
                        "tf_kd_virtual",
                        "ps_kd",
                        "cs_kd",
                        "self_distillation",
                    )
                ),
                larger(f"{SHIFTS}/dlb", f"{SHIFTS}/ddgsd"),
            ),
        ),
        Claim(
            "Label smoothing is better than plain labels.",
            recalled("Szegedy et al., 2016, https://arxiv.org/abs/1512.00567"),
            larger("label_smoothing", "baseline"),
        ),
        Claim(
            "A network gains from its own earlier training, and from a virtual teacher.",
            "Yuan et al., 2020, https://arxiv.org/abs/1909.11723",
            every(larger("tf_kd_self", "baseline"), larger("tf_kd_virtual", "baseline")),
        ),
        Claim(
            "PS-KD is better than plain labels.",
            "Kim et al., 2021, https://arxiv.org/abs/2006.12000",
            larger("ps_kd", "baseline"),
        ),
        Claim(
            "CS-KD is better than plain labels.",
            "Yun et al., 2020, https://arxiv.org/abs/2003.13964",
            larger("cs_kd", "baseline"),
        ),
        Claim(
            "A network taught by its own last exit is better.",
            "Zhang et al., 2019, https://arxiv.org/abs/1905.08094",
            larger("self_distillation", "baseline"),
        ),
        Claim(
            "Two distorted views that teach each other are better than one.",
            "Xu and Liu, 2019, https://doi.org/10.1609/aaai.v33i01.33015565",
            larger(f"{SHIFTS}/ddgsd", f"{SHIFTS}/baseline"),
        ),
        Claim(
            "Two trainings of Tf-KD are worth more than one that is twice as long.",
            HERE,
            larger("tf_kd_self", "baseline_twice"),
        ),
    ),
    notes=(
        "Settings are those of `keras-distill recipes` at its small setting, the same for all: "
        "none was tuned for its scheme.",
        "DLB's paper crops and mirrors its images: the rows with random shifts are nearer to it.",
    ),
    columns={"calibration error %": column("calibration_error", scale=100.0)},
)


@dataclasses.dataclass(frozen=True)
class Augmented(Task):
    """A `Task` whose batches are made with more arguments of the pipeline.

    Attributes:
        pipeline_options: Such as `augment`, `mix` and `class_count`.
        label_loss: The label loss; None for the student's own.
    """

    pipeline_options: dict = dataclasses.field(default_factory=dict)
    label_loss: keras.losses.Loss | None = None

    def plan(self, model, network, **options):
        """As `Task.plan`."""
        changed = {"loss": self.label_loss, **self.pipeline_options}
        return super().plan(model, network, **{**options, **changed})


def _with(task, loss=None, **options):
    known = {field.name: getattr(task, field.name) for field in dataclasses.fields(Task)}
    return Augmented(**known, pipeline_options=options, label_loss=loss)


def _cutout(make):
    """`make` on images of which a rectangle is erased."""

    def plan(place, task):
        side = task.images.image_shape[0]
        erase = keras.layers.RandomErasing(ALWAYS, SHARES, fill_value=0.0, value_range=(0, 1))
        own = task.setting.augmentation((side, side))
        layers = [erase] if own is None else [own, erase]
        return make(_with(task, augment=keras_augment(*layers)))

    return plan


def _cutmix(make):
    """`make` on images with rectangles of others, and labels in proportion."""

    def plan(place, task):
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        mix = keras.layers.CutMix(ALWAYS)
        return make(_with(task, loss, mix=mix, class_count=task.images.class_count))

    return plan


def _pair(group, wrap):
    return (
        Row("baseline", f"Alone, {group}.", trained("baseline", wrap(paper.baseline)), group),
        Row("dlb", f"DLB, {group}.", trained("dlb", wrap(paper.dlb)), group),
    )


AUGMENTATION = Experiment(
    name="dlb_augmentation",
    title="DLB beside Cutout and CutMix",
    question="Does DLB still help where images are erased in part or mixed?",
    scales=scales(5, 5, SMALL, FULL),
    measure=rows(*_pair("with Cutout", _cutout), *_pair("with CutMix", _cutmix)),
    claims=(
        Claim(
            "DLB adds to Cutout.",
            recalled(DLB),
            larger("with Cutout/dlb", "with Cutout/baseline"),
        ),
        Claim(
            "DLB adds to CutMix.",
            DLB,
            larger("with CutMix/dlb", "with CutMix/baseline"),
        ),
    ),
    notes=(
        "Cutout is keras.layers.RandomErasing on every image: a rectangle of 2 to 33 % of it is "
        "black. CutMix is keras.layers.CutMix with alpha 1 on every batch. DLB's repeated half is "
        "erased anew, and mixed as it was: permutation and boxes are drawn once for both "
        "appearances.",
    ),
)


def noisy(rate):
    """The group of a share of wrong labels."""
    return f"{round(100 * rate)} % wrong labels"


def _noisy_rows(rate):
    return tuple(
        Row(name, f"{what} {noisy(rate)}.", trained(name, noise=rate), noisy(rate))
        for name, what in (
            ("baseline", "The student alone,"),
            ("label_smoothing", "Smoothed labels,"),
            ("dlb", "DLB,"),
        )
    )


def _better_at_all(name, *measures):
    """A judge of "better than the student alone at every rate"."""
    return every(
        *(larger(f"{noisy(rate)}/{name}", f"{noisy(rate)}/baseline", *measures) for rate in NOISES)
    )


NOISE = Experiment(
    name="label_noise",
    title="DLB on wrong labels",
    question="Does DLB help where a share of the training labels is wrong?",
    scales=scales(5, 9, SMALL, FULL),
    measure=rows(*(row for rate in NOISES for row in _noisy_rows(rate))),
    claims=(
        Claim(
            "DLB is better than the student alone at each rate of wrong labels.",
            DLB,
            _better_at_all("dlb"),
        ),
        Claim(
            "It is so at the best epoch too, not only after the last one.",
            HERE,
            _better_at_all("dlb", BEST),
        ),
        Claim(
            "Smoothed labels are better than plain ones at each rate.",
            HERE,
            _better_at_all("label_smoothing"),
        ),
    ),
    notes=(
        "Wrong labels are symmetric: another class, each as likely as the next. Each seed has its "
        "own, the same for all schemes. Test labels are right.",
    ),
)
