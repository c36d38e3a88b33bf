"""`Task`: what a recipe is given, and the `Plan` that it makes of it."""

import dataclasses
from collections.abc import Callable

from keras_distill import _checks
from keras_distill import data
from keras_distill.data.images import ImageData
from keras_distill.recipes import networks
from keras_distill.recipes.settings import Setting
from keras_distill.recipes.training import Forwards
from keras_distill.recipes.training import Plan

OTHER_SEEDS = 1000  # between the seeds of the networks of one run, above the runs' own
LAST_SEED = 2**31 - 1  # Keras takes twice as large ones: room for the other networks'


def check_seed(seed):
    """Raises unless a run can begin with this seed; returns it."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= LAST_SEED:
        expected = f"`seed` to be a whole number from 0 to {LAST_SEED}"
        raise ValueError(_checks.message(expected, "seed", seed))
    return seed


@dataclasses.dataclass(frozen=True)
class Task:
    """What a recipe trains, on what, and how.

    Attributes:
        student: A function of a seed that builds a student with these initial weights.
        images: The training `ImageData`.
        setting: The `Setting`.
        seed: Of the student's weights, the order of the images and their augmentation.
        teacher: As `student`, for the teacher. Defaults to the student's.
        ensemble: Number of teachers that are averaged.
    """

    student: Callable
    images: ImageData
    setting: Setting
    seed: int = 0
    teacher: Callable | None = None
    ensemble: int = 1

    def build(self, number=0, name="student"):
        """Student `number`, each with weights of its own; 0 has those of the other recipes."""
        model = self.student(self.seed + OTHER_SEEDS * number)
        model.name = name
        return model

    @property
    def count(self):
        """Number of training images."""
        return len(self.images)

    @property
    def steps(self):
        """Steps of an epoch that takes each image."""
        return data.steps_per_epoch(self.count, self.setting.batch_size)

    def plan(
        self,
        model,
        network,
        *,
        pipeline=data.batches,
        loss=None,
        forwards=None,
        steps=None,
        generations=1,
        **options,
    ):
        """The `Plan` of a training on `pipeline`, which takes what `kd.data.batches` does.

        Args:
            model, network: As in `Plan`.
            pipeline: A function such as `kd.data.batches`.
            loss: The label loss. Defaults to the cross-entropy that fits the head.
            forwards: `Forwards`. Defaults to each image once.
            steps: Steps of an epoch. Defaults to those that take each image.
            generations: As in `Plan`.
            **options: More arguments of the pipeline.
        """
        setting, images = self.setting, self.images
        options = {"augment": setting.augmentation(images.image_shape), **options}

        def batches(start_epoch):
            return pipeline(
                images.images,
                images.labels,
                setting.batch_size,
                epochs=setting.epochs * generations,
                start_epoch=start_epoch,
                seed=self.seed,
                **options,
            )

        steps = steps or self.steps
        compile = {
            "optimizer": setting.optimizer(steps),
            "loss": loss or networks.label_loss(network),
            "metrics": ["accuracy"],
        }
        forwards = forwards or Forwards(student=self.count)
        epochs = setting.epochs
        return Plan(model, network, batches, compile, epochs, steps, forwards, generations)

    def plan_generations(self, model, generations):
        """The `Plan` of a wrapper that trains several generations, of which the last is kept."""
        earlier = self.count * (generations - 1)
        forwards = Forwards(student=self.count, peers=earlier, frozen=earlier)
        return self.plan(model, model.student, forwards=forwards, generations=generations)
