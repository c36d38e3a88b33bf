"""Random features of the sizes that a CIFAR ResNet has, for the losses alone."""

import numpy as np

CHANNELS, SIDES = (16, 16, 32, 64), (32, 32, 16, 8)  # Stem and stages.
KINDS = {
    "Hint": "map",
    "AttentionTransfer": "map",
    "ActivationBoundary": "map",
    "FlowOfSolution": "maps",
    "NeuronSelectivity": "map",
    "SimilarityPreserving": "map",
    "ProbabilisticTransfer": "vector",
    "RelationalDistance": "vector",
    "RelationalAngle": "vector",
    "CorrelationCongruence": "vector",
}


def features(name, count):
    """The teacher's and the student's, as a loss reads them, channels last."""
    rng, kind = np.random.default_rng(0), KINDS[name]
    if kind == "vector":
        shapes = [(count, CHANNELS[-1])]
    else:
        shapes = [(count, side, side, width) for side, width in zip(SIDES, CHANNELS)]
        shapes = shapes if kind == "maps" else shapes[-2:-1]
    both = [[rng.normal(size=s).astype("float32") for s in shapes] for _ in range(2)]
    return both if kind == "maps" else [own[0] for own in both]
