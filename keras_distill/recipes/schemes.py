"""The recipes by name: each scheme's function, its paper, and its two settings.

"paper" is the published setting for CIFAR, hours on a GPU. "small" is one for a processor, the
same for all schemes, for 1,000 images of Fashion-MNIST: 60 epochs of batch 64, no augmentation,
students of 8, 16 and 32 channels; SGD at 0.1, falling to 0 along half a cosine. A scheme that
forwards each image twice gets half the epochs and half the images a batch there, so that all
students see as many images in as many steps.

The rate of "small" is among those that did equally well for the student alone on 4,000 training
images held out (two seeds, 80 to 82 % for SGD at 0.05 to 0.2 and Adam at 0.005 and 0.02, all
falling; 63 to 77 % at constant rates). No test image took part.
"""

import dataclasses
from collections.abc import Callable
from typing import Self

import keras

from keras_distill import _checks
from keras_distill.recipes import networks
from keras_distill.recipes import paper
from keras_distill.recipes.settings import Setting
from keras_distill.recipes.tasks import Task
from keras_distill.recipes.training import Plan

SMALL = Setting(epochs=60, batch_size=64, learning_rate=0.1, cosine=True, augment=False, flip=False)
SETTINGS = ("small", "paper")
BUDGETS = ("images", "epochs")
STUDENTS = {"small": "small-8-16-32", "paper": "resnet20"}
TEACHERS = {"small": None, "paper": "resnet56"}  # None: as the student
ENSEMBLES = {"small": 4, "paper": 1}

_DLB = Setting(epochs=240, batch_size=64, learning_rate=0.05, drops=(150, 180, 210))
_TF_KD = Setting(
    epochs=200,
    batch_size=128,
    learning_rate=0.1,
    nesterov=False,
    drops=(60, 120, 160),
    factor=0.2,
    warm_up=1,
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A scheme and how it is trained.

    Attributes:
        name: What the command line calls it.
        make: The function of `recipes.paper` that makes its training ready.
        reference: Authors, title, year and address.
        paper: The published `Setting`.
        views: How often the student forwards each image of an epoch with a gradient.
        augments: Whether it is nothing without augmentation, and so always has it.
        first: Makes ready the training of the teacher that `make` takes; None for none.
        small_options: Arguments of `make` in the small setting that differ from its own.
    """

    name: str
    make: Callable
    reference: str
    paper: Setting
    views: int = 1
    augments: bool = False
    first: Callable | None = None
    small_options: dict = dataclasses.field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line that says what it is."""
        return self.make.__doc__.strip().splitlines()[0]

    def setting(self, options: "Options", as_given: bool = False) -> Setting:
        """The `Setting` that `Options` ask for.

        Args:
            options: An `Options`.
            as_given: Whether `options.epochs` are this scheme's own, not the baseline's.
        """
        changes = {
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "learning_rate": options.learning_rate,
            "augment": self.augments or options.augment,
            "flip": options.flip,
        }
        views = self.views if options.budget == "images" else 1
        if as_given:
            small = SMALL.shared_by(views)
            return (small if options.setting == "small" else self.paper).changed(**changes)
        if options.setting == "small":
            return SMALL.changed(**changes).shared_by(views)
        if options.epochs is not None:
            changes["epochs"] = max(1, round(options.epochs / views))
        return self.paper.changed(**changes)

    def plan(self, task: Task, options: "Options", teacher: keras.Model | None = None) -> Plan:
        """The `Plan` of its training, from the trained teacher where it has one.

        Args:
            task: A `tasks.Task`.
            options: An `Options`.
            teacher: The trained network.
        """
        own = self.small_options if options.setting == "small" else {}
        return self.make(task, **own) if self.first is None else self.make(task, teacher, **own)


@dataclasses.dataclass(frozen=True)
class Options:
    """What is chosen for all recipes of a run; None leaves it to the recipe.

    Attributes:
        setting: "small" or "paper".
        student, teacher: Names of networks; the teacher may be a `.keras` file.
        ensemble: Number of teachers that are trained and averaged.
        epochs: Epochs of the baseline.
        batch_size, learning_rate: Of every training.
        augment, flip: As in `Setting`.
        budget: "images": a scheme that forwards each image twice gets half the epochs.
            "epochs": as many epochs as the others, and twice the images.
        looks: How many times the accuracy on the test images is measured in a training, at
            even distances; the best epoch is the best of these.
    """

    setting: str = "small"
    student: str | None = None
    teacher: str | None = None
    ensemble: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    augment: bool | None = None
    flip: bool | None = None
    budget: str = "images"
    looks: int = 10

    def __post_init__(self):
        _checks.one_of("setting", self.setting, SETTINGS)
        _checks.one_of("budget", self.budget, BUDGETS)
        _checks.positive_integer("looks", self.looks)
        for name, check in (
            ("ensemble", _checks.positive_integer),
            ("epochs", _checks.positive_integer),
            ("batch_size", _checks.positive_integer),
            ("learning_rate", _checks.positive),
        ):
            if getattr(self, name) is not None:
                check(name, getattr(self, name))
        if self.student is not None and networks.is_file(self.student):
            raise ValueError(
                _checks.message("`student` to be a network's name", "student", self.student)
                + " A recipe begins with weights of its seed, such as small-8-16-32."
            )
        if (self.ensemble or 1) > 1 and self.teacher and networks.is_file(self.teacher):
            raise ValueError(
                _checks.message(
                    "`ensemble` only with teachers that are trained here", "teacher", self.teacher
                )
            )

    def filled(self) -> Self:
        """The same with the networks of the setting where none are chosen."""
        student = self.student or STUDENTS[self.setting]
        teacher = self.teacher or TEACHERS[self.setting] or student
        ensemble = self.ensemble or (1 if networks.is_file(teacher) else ENSEMBLES[self.setting])
        return dataclasses.replace(self, student=student, teacher=teacher, ensemble=ensemble)


RECIPES = (
    Recipe(
        "baseline",
        paper.baseline,
        "Shen et al., Self-Distillation from the Last Mini-Batch, 2022 (its baseline), "
        "https://arxiv.org/abs/2203.16172",
        _DLB,
    ),
    Recipe(
        "label_smoothing",
        paper.label_smoothing,
        "Szegedy et al., Rethinking the Inception Architecture, 2016, "
        "https://arxiv.org/abs/1512.00567",
        _DLB,
    ),
    Recipe(
        "distillation",
        paper.distillation,
        "Hinton et al., Distilling the Knowledge in a Neural Network, 2015, "
        "https://arxiv.org/abs/1503.02531",
        _DLB.changed(nesterov=False),
        first=paper.teachers,
    ),
    Recipe(
        "function_matching",
        paper.function_matching,
        "Beyer et al., Knowledge distillation: A good teacher is patient and consistent, 2022, "
        "https://arxiv.org/abs/2106.05237",
        Setting(1000, 512, 0.1, cosine=True, warm_up=5),
        first=paper.teachers,
        augments=True,
    ),
    Recipe(
        "mutual",
        paper.mutual,
        "Zhang et al., Deep Mutual Learning, 2018, https://arxiv.org/abs/1706.00384",
        Setting(200, 64, 0.1, drops=(60, 120, 180)),
    ),
    Recipe(
        "dlb",
        paper.dlb,
        "Shen et al., Self-Distillation from the Last Mini-Batch, 2022, "
        "https://arxiv.org/abs/2203.16172",
        _DLB.changed(epochs=120),
        views=2,
    ),
    Recipe(
        "self_distillation",
        paper.self_distillation,
        "Zhang et al., Be Your Own Teacher, 2019, https://arxiv.org/abs/1905.08094",
        Setting(250, 128, 0.1, nesterov=False, drops=(250 / 3, 500 / 3, 240)),
        small_options={"preset": None},
    ),
    Recipe(
        "cs_kd",
        paper.cs_kd,
        "Yun et al., Regularizing Class-wise Predictions via Self-knowledge Distillation, 2020, "
        "https://arxiv.org/abs/2003.13964",
        Setting(200, 128, 0.1, nesterov=False, weight_decay=1e-4, drops=(100, 150)),
    ),
    Recipe(
        "ddgsd",
        paper.ddgsd,
        "Xu and Liu, Data-Distortion Guided Self-Distillation, 2019, "
        "https://doi.org/10.1609/aaai.v33i01.33015565",
        Setting(200, 128, 0.1, nesterov=False, weight_decay=1e-4, drops=(60, 120, 180)),
        views=2,
        augments=True,
    ),
    Recipe(
        "ps_kd",
        paper.ps_kd,
        "Kim et al., Self-Knowledge Distillation with Progressive Refinement of Targets, 2021, "
        "https://arxiv.org/abs/2006.12000",
        Setting(300, 128, 0.1, drops=(150, 225)),
    ),
    Recipe(
        "tf_kd_self",
        paper.tf_kd_self,
        "Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, 2020, "
        "https://arxiv.org/abs/1909.11723",
        _TF_KD,
        small_options={"temperature": 4.0, "alpha": 0.9, "multiplier": 1.0, "preset": None},
    ),
    Recipe(
        "tf_kd_virtual",
        paper.tf_kd_virtual,
        "Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, 2020, "
        "https://arxiv.org/abs/1909.11723",
        _TF_KD,
        small_options={"multiplier": 1.0, "preset": None},
    ),
    Recipe(
        "born_again",
        paper.born_again,
        "Furlanello et al., Born-Again Neural Networks, 2018, https://arxiv.org/abs/1805.04770",
        _DLB,
    ),
    Recipe(
        "one",
        paper.one,
        "Lan et al., Knowledge Distillation by On-the-Fly Native Ensemble, 2018, "
        "https://arxiv.org/abs/1806.04606",
        Setting(300, 128, 0.1, nesterov=False, weight_decay=1e-4, drops=(151, 225)),
    ),
    Recipe(
        "mean_teacher",
        paper.mean_teacher,
        "Tarvainen and Valpola, Mean teachers are better role models, 2017, "
        "https://arxiv.org/abs/1703.01780",
        _DLB,
        small_options={"decay": 0.99, "weight": 10.0},
    ),
)


def names() -> list[str]:
    """The names of all recipes."""
    return [recipe.name for recipe in RECIPES]


def named(name: str) -> Recipe:
    """The `Recipe` of that name.

    Args:
        name: One of `names()`.

    Raises:
        ValueError: If there is none; it tells the nearest names.
    """
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    near = _checks.nearest_names(str(name), names()) or names()
    raise ValueError(
        _checks.message("`recipe` to be one that `keras-distill recipes` lists", "recipe", name)
        + f" Nearest: {', '.join(near)}."
    )
