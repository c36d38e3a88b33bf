"""The published schemes as recipes: each function makes one training ready.

A recipe takes a `Task` (networks, images, numbers, seed) and returns a `Plan` (wrapper, data,
compile arguments). Its keyword arguments are the scheme's own, with the published values. Each
docstring says where a number is from: the authors' code, a re-implementation, or our choice
where no source that we read has one. Learning rates and epochs stand in `schemes`.
"""

import keras

from keras_distill import _checks
from keras_distill import data
from keras_distill import schedules
from keras_distill import taps
from keras_distill.data.overlap import overlap_batches
from keras_distill.losses.label_smoothing import LabelSmoothing
from keras_distill.losses.response import SoftTargets
from keras_distill.models.born_again import BornAgain
from keras_distill.models.class_wise import ClassWiseDistiller
from keras_distill.models.distiller import Distiller
from keras_distill.models.distortion import DistortionDistiller
from keras_distill.models.dlb import DLBModel
from keras_distill.models.ensemble import EnsembleTeacher
from keras_distill.models.mean_teacher import MeanTeacher
from keras_distill.models.mutual import MutualLearner
from keras_distill.models.native_ensemble import NativeEnsemble
from keras_distill.models.progressive import ProgressiveDistiller
from keras_distill.models.self_distiller import SelfDistiller
from keras_distill.models.teacher_free import TeacherFreeDistiller
from keras_distill.models.terms import Term
from keras_distill.recipes import networks
from keras_distill.recipes.tasks import OTHER_SEEDS
from keras_distill.recipes.tasks import Task
from keras_distill.recipes.training import Forwards
from keras_distill.recipes.training import Plan


def baseline(task: Task) -> Plan:
    """The student alone, on the labels.

    Published: the baseline of DLB's code (Meta-knowledge-Lab/DLB, base.py): SGD with Nesterov
    momentum 0.9, weight decay 5e-4, rate 0.05, batch 64, 240 epochs, x 0.1 after 150, 180 and
    210; random crop with 4 pixels of padding, and flip.
    """
    student = task.build()
    return task.plan(student, student)


def label_smoothing(task: Task, smoothing: float = 0.1) -> Plan:
    """The student alone, on labels of which a tenth is spread over all classes.

    Published: 0.1, of Tf-KD's code. Deviation: each class gets 0.1 / C, as in Keras, the true
    one too; that code gives the others 0.1 / (C - 1). Ours: the rest is the baseline's.
    """
    student = task.build()
    logits = networks.label_loss(student).get_config()["from_logits"]
    return task.plan(student, student, loss=LabelSmoothing(smoothing, from_logits=logits))


def teachers(task: Task) -> Plan:
    """What `distillation` distils from: one teacher on the labels, or several, averaged."""
    build = task.teacher or task.student
    members = [build(task.seed + OTHER_SEEDS * (k + 1)) for k in range(task.ensemble)]
    if len(members) == 1:
        return task.plan(members[0], members[0])
    for k, member in enumerate(members, start=1):
        member.name = f"member{k}"
    teacher = EnsembleTeacher(members, name="teacher")
    forwards = Forwards(student=0, peers=task.count * len(members))
    return task.plan(teacher, teacher, forwards=forwards)


def distillation(
    task: Task,
    teacher: keras.Model,
    temperature: float = 4.0,
    weight: float = 0.9,
    label_weight: float = 0.1,
) -> Plan:
    """Knowledge distillation: the student on the labels and on a trained teacher's answers.

    Published: temperature 4, weights 0.9 and 0.1, SGD with momentum 0.9, weight decay 5e-4, rate
    0.05, batch 64, 240 epochs, x 0.1 after 150, 180 and 210 (HobbitLong/RepDistiller; mdistiller
    too). Ours: an ensemble of teachers averages probabilities, at the loss's temperature.
    """
    student = task.build()
    term = Term(SoftTargets(temperature), weight=weight)
    distiller = Distiller(teacher, student, term, student_loss_weight=label_weight)
    frozen = task.count * len(getattr(teacher, "members", [teacher]))
    return task.plan(distiller, student, forwards=Forwards(student=task.count, frozen=frozen))


def function_matching(
    task: Task, teacher: keras.Model, temperature: float = 1.0, alpha: float = 1.0
) -> Plan:
    """Consistent and patient teaching: teacher and student see the same mixed view; no labels.

    Published (Beyer et al., and google-research/big_vision): KL at temperature 1 on ImageNet, 1, 2,
    5 or 10 on small sets; MixUp of alpha 1 on the view that both see; no label loss; very long
    training (1,200 epochs and more on ImageNet). Ours, for CIFAR: SGD with momentum 0.9 where the
    paper's code has an optimizer like Adam, rate 0.1 falling along a cosine, 1000 epochs; batch 512
    as on its small sets.
    """
    student = task.build()
    distiller = Distiller(teacher, student, SoftTargets(temperature), student_loss_weight=0.0)
    head = networks.label_loss(student).get_config()["from_logits"]
    frozen = task.count * len(getattr(teacher, "members", [teacher]))
    return task.plan(
        distiller,
        student,
        loss=keras.losses.CategoricalCrossentropy(from_logits=head),
        forwards=Forwards(student=task.count, frozen=frozen),
        mix=keras.layers.MixUp(alpha),
        class_count=task.images.class_count,
    )


def mutual(task: Task, students: int = 2, temperature: float = 1.0, weight: float = 1.0) -> Plan:
    """DML: students that learn from each other's predictions, step by step together.

    Published: two students, temperature 1, weight 1 (the paper); SGD with Nesterov momentum 0.9,
    rate 0.1, batch 64, 200 epochs, x 0.1 every 60, weight decay 5e-4 (texts and
    re-implementations, not the paper). Kept is the first student, not the best.
    """
    cohort = [task.build(k, f"student{k + 1}") for k in range(students)]
    forwards = Forwards(student=task.count, peers=task.count * (students - 1))
    learner = MutualLearner(cohort, temperature, weight)
    return task.plan(learner, cohort[0], forwards=forwards)


def dlb(task: Task, temperature: float = 3.0, weight: float = 1.0) -> Plan:
    """DLB: each batch repeats half of the one before, and learns what the student said of it.

    Published: temperature 3, weight 1 (texts and a re-implementation; the code has no defaults),
    the baseline's training with 64 new images a step (Meta-knowledge-Lab/DLB), and half its
    epochs, for each image is forwarded twice (texts). Deviation: an epoch begins without a
    repeated half, so that a run that was killed and resumed equals one that was not.
    """
    student = task.build()
    half = task.setting.batch_size
    steps = data.steps_per_epoch(task.count, half, drop_remainder=True)
    if steps == 0:
        raise ValueError(
            _checks.message(
                f"`batch_size` to be at most the {task.count} images", "batch_size", half
            )
        )

    def halves(images, labels, half, **options):
        return overlap_batches((images, labels), half, carry=False, **options)

    forwards = Forwards(student=2 * half * steps)
    model = DLBModel(student, temperature, weight)
    return task.plan(model, student, pipeline=halves, forwards=forwards, steps=steps)


def self_distillation(
    task: Task,
    temperature: float = 3.0,
    alpha: float = 0.3,
    feature_weight: float = 0.03,
    preset: str | None = "journal",
) -> Plan:
    """BYOT: exits at the student's earlier stages learn from its deepest one.

    Published (ArchipLab-LinfengZhang/pytorch-self-distillation-final): temperature 3, alpha 0.3,
    feature weight 0.03, and the choices of `SelfDistiller(preset="journal")`; SGD with momentum
    0.9, weight decay 5e-4, rate 0.1, batch 128, 250 epochs, x 0.1 after one and two thirds of
    them and 10 before the end. Deviation: crop and flip alone; the code adds AutoAugment and
    Cutout. The small setting has the library's own choices, with a factor T^2 and the mean
    squared difference of the features. The exits are small: they count as no networks.
    """
    student = task.build()
    model = SelfDistiller(
        student, stages(student)[:-1], temperature, alpha, feature_weight, preset=preset
    )
    return task.plan(model, student)


def cs_kd(task: Task, temperature: float = 4.0, weight: float = 1.0) -> Plan:
    """CS-KD: predictions of two images of one class are drawn together.

    Published (alinlab/cs-kd): temperature 4, weight 1 for CIFAR-100, SGD with momentum 0.9,
    weight decay 1e-4, rate 0.1, batch 128 with as many partners, 200 epochs, x 0.1 after half
    and three quarters of them.
    """
    student = task.build()
    model = ClassWiseDistiller(student, temperature, weight)
    forwards = Forwards(student=task.count, frozen=task.count)
    return task.plan(model, student, pipeline=data.class_pairs, forwards=forwards)


def ddgsd(
    task: Task, temperature: float = 3.0, weight: float = 1.0, feature_weight: float = 5e-4
) -> Plan:
    """DDGSD: two distorted views of an image, predicted alike.

    Published (youngerous/ddgsd-pytorch, which calls them the paper's): temperature 3, weights 1
    and 5e-4, weight decay 1e-4, rate 0.1, 200 epochs, x 0.1 every 60. Ours: momentum 0.9, batch
    128. The views differ by their augmentation alone, so this recipe always augments. At equal
    epochs, as the paper compares, it forwards twice the images of its baseline (budget="epochs").
    """
    student = task.build()
    model = DistortionDistiller(student, temperature, weight, feature_weight)
    forwards = Forwards(student=2 * task.count)
    return task.plan(model, student, pipeline=data.two_views, forwards=forwards)


def ps_kd(task: Task, alpha: float = 0.8) -> Plan:
    """PS-KD: labels are softened by what the student said in the epoch before.

    Published (lgcnsai/PS-KD-Pytorch): a share that rises to 0.8, SGD with Nesterov momentum 0.9,
    weight decay 5e-4, rate 0.1, batch 128, 300 epochs, x 0.1 after 150 and 225.
    """
    student = task.build()
    model = ProgressiveDistiller(student, task.count, alpha)
    return task.plan(model, student, ids=True)


def tf_kd_self(
    task: Task,
    temperature: float = 6.0,
    alpha: float = 0.95,
    multiplier: float = 50.0,
    preset: str | None = "official",
) -> Plan:
    """Tf-KD_self: the student's teacher is an earlier training of the same network.

    Published (yuanli2333/Teacher-free-Knowledge-Distillation, for ResNet-18): temperature 6,
    alpha 0.95, multiplier 50 on the mean over images and classes; SGD with momentum 0.9, weight
    decay 5e-4, rate 0.1, batch 128, 200 epochs, x 0.2 after 60, 120 and 160, one epoch of
    warm-up. Each of the two trainings has these epochs. The small setting has temperature 4,
    alpha 0.9, and the mean over images, for the multiplier is meant for 100 classes.
    """
    model = TeacherFreeDistiller(
        task.build(), "self", preset, temperature, alpha, multiplier=multiplier, seed=task.seed
    )
    return task.plan_generations(model, 2)


def tf_kd_virtual(
    task: Task,
    temperature: float = 20.0,
    alpha: float = 0.1,
    multiplier: float = 100.0,
    preset: str | None = "official",
) -> Plan:
    """Tf-KD_reg: a virtual teacher, 0.99 on the true class and even on the others.

    Published (yuanli2333/Teacher-free-Knowledge-Distillation, for ResNet-18): temperature 20,
    alpha 0.1, multiplier 100, and the training of `tf_kd_self`. The small setting has the
    paper's formula: logits are softened, the mean is over images, the multiplier 1.
    """
    student = task.build()
    model = TeacherFreeDistiller(
        student, "virtual", preset, temperature, alpha, multiplier=multiplier
    )
    return task.plan(model, student)


def born_again(
    task: Task, generations: int = 2, temperature: float = 1.0, label_weight: float = 0.0
) -> Plan:
    """Born-again networks: each generation learns from the one before it.

    Published: temperature 1, the teacher's answers alone (the paper's text). Ours: two
    generations after the first, and all else, the baseline's. Kept is the last generation.
    """
    model = BornAgain(task.build(), generations, temperature, label_weight, seed=task.seed)
    return task.plan_generations(model, generations + 1)


def one(task: Task, branches: int = 3, temperature: float = 3.0, ramp: float = 80 / 300) -> Plan:
    """ONE: branches on a shared stem, taught by their gated ensemble.

    Published (Lan1991Xu/ONE_NeurIPS2018): three branches, temperature 3, a weight that rises over
    80 of 300 epochs, SGD with momentum 0.9, weight decay 1e-4, rate 0.1, batch 128, x 0.1 after
    151 and 225. Kept is the first branch. Each further branch counts as a network here,
    although the stem is forwarded once for all.
    """
    student = task.build()
    steps = max(1, round(ramp * task.setting.epochs * task.steps))
    weight = schedules.SigmoidRamp(1.0, steps)
    model = NativeEnsemble(student, stages(student)[-2], branches, temperature, weight)
    forwards = Forwards(student=task.count, peers=task.count * (branches - 1))
    return task.plan(model, student, forwards=forwards)


def mean_teacher(
    task: Task, decay: float = 0.999, weight: float = 100.0, ramp: float = 5.0
) -> Plan:
    """Mean teacher: the student agrees with the moving average of its weights.

    Published (CuriousAI/mean-teacher): decay 0.999, squared difference with weight 100, which
    rises over 5 epochs. Ours: the baseline's training. Kept is the average. Student and average
    see views of their own where images are augmented, else the same images. The small setting
    has decay 0.99 and weight 10: its 960 steps are shorter than the memory of 0.999.
    """
    student = task.build()
    rising = schedules.SigmoidRamp(weight, max(1, round(ramp * task.steps)))
    model = MeanTeacher(student, decay, rising)
    pipeline = data.two_views if task.setting.augment else data.batches
    forwards = Forwards(student=task.count, frozen=task.count)
    return task.plan(model, model.averaged, pipeline=pipeline, forwards=forwards)


def stages(model: keras.Model) -> list[str]:
    """Names of the layers that end the stages of a network of the library, in their order."""
    found = taps.list_taps(model)
    return [name for name in ("stem", "stage1", "stage2", "stage3") if name in found]
