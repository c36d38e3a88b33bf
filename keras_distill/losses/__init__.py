"""Distillation losses: each a pure function and its `keras.losses.Loss` twin.

The functions take the teacher's tensor first, then the student's, and return one value a
prediction; the classes reduce, weigh and mask it by Keras's own rules.
"""

from keras_distill.losses.activation_boundary import ActivationBoundary
from keras_distill.losses.activation_boundary import activation_boundary
from keras_distill.losses.alpha_divergence import AdaptiveAlphaDivergence
from keras_distill.losses.alpha_divergence import AlphaDivergence
from keras_distill.losses.alpha_divergence import adaptive_alpha_divergence
from keras_distill.losses.alpha_divergence import alpha_divergence
from keras_distill.losses.attention_transfer import AttentionTransfer
from keras_distill.losses.attention_transfer import attention_transfer
from keras_distill.losses.base import DistillationLoss
from keras_distill.losses.boundary_support import BoundarySupport
from keras_distill.losses.contrastive import ContrastiveRepresentation
from keras_distill.losses.decoupled_kd import DecoupledKD
from keras_distill.losses.decoupled_kd import NormalizedKD
from keras_distill.losses.decoupled_kd import decoupled_kd
from keras_distill.losses.decoupled_kd import normalized_kd
from keras_distill.losses.dist import DIST
from keras_distill.losses.dist import dist
from keras_distill.losses.factor_transfer import FactorTransfer
from keras_distill.losses.factor_transfer import factor_transfer
from keras_distill.losses.feature import Hint
from keras_distill.losses.feature import hint
from keras_distill.losses.flow_of_solution import FlowOfSolution
from keras_distill.losses.flow_of_solution import flow_of_solution
from keras_distill.losses.gradient_attention import GradientAttention
from keras_distill.losses.gradient_attention import gradient_attention
from keras_distill.losses.hard_targets import HardTargets
from keras_distill.losses.hard_targets import hard_targets
from keras_distill.losses.instance_graph import InstanceGraph
from keras_distill.losses.instance_graph import instance_graph
from keras_distill.losses.kernel_alignment import KernelAlignment
from keras_distill.losses.kernel_alignment import kernel_alignment
from keras_distill.losses.multi_level_kd import MultiLevelKD
from keras_distill.losses.multi_level_kd import multi_level_kd
from keras_distill.losses.neuron_selectivity import NeuronSelectivity
from keras_distill.losses.neuron_selectivity import neuron_selectivity
from keras_distill.losses.relation import CorrelationCongruence
from keras_distill.losses.relation import ProbabilisticTransfer
from keras_distill.losses.relation import SimilarityPreserving
from keras_distill.losses.relation import correlation_congruence
from keras_distill.losses.relation import probabilistic_transfer
from keras_distill.losses.relation import similarity_preserving
from keras_distill.losses.relational_kd import RelationalAngle
from keras_distill.losses.relational_kd import RelationalDistance
from keras_distill.losses.relational_kd import relational_angle
from keras_distill.losses.relational_kd import relational_distance
from keras_distill.losses.representational_similarity import RepresentationalSimilarity
from keras_distill.losses.representational_similarity import representational_similarity
from keras_distill.losses.response import JensenShannon
from keras_distill.losses.response import LogitMSE
from keras_distill.losses.response import SoftTargets
from keras_distill.losses.response import jensen_shannon
from keras_distill.losses.response import logit_mse
from keras_distill.losses.response import soft_targets
from keras_distill.losses.review_kd import ReviewKD
from keras_distill.losses.review_kd import review_kd
from keras_distill.losses.variational_information import VariationalInformation
from keras_distill.losses.variational_information import variational_information

__all__ = [
    "ActivationBoundary",
    "AdaptiveAlphaDivergence",
    "AlphaDivergence",
    "AttentionTransfer",
    "BoundarySupport",
    "ContrastiveRepresentation",
    "CorrelationCongruence",
    "DIST",
    "DecoupledKD",
    "DistillationLoss",
    "FactorTransfer",
    "FlowOfSolution",
    "GradientAttention",
    "HardTargets",
    "Hint",
    "InstanceGraph",
    "JensenShannon",
    "KernelAlignment",
    "LogitMSE",
    "MultiLevelKD",
    "NeuronSelectivity",
    "NormalizedKD",
    "ProbabilisticTransfer",
    "RelationalAngle",
    "RelationalDistance",
    "RepresentationalSimilarity",
    "ReviewKD",
    "SimilarityPreserving",
    "SoftTargets",
    "VariationalInformation",
    "activation_boundary",
    "adaptive_alpha_divergence",
    "alpha_divergence",
    "attention_transfer",
    "correlation_congruence",
    "decoupled_kd",
    "dist",
    "factor_transfer",
    "flow_of_solution",
    "gradient_attention",
    "hard_targets",
    "hint",
    "instance_graph",
    "jensen_shannon",
    "kernel_alignment",
    "logit_mse",
    "multi_level_kd",
    "neuron_selectivity",
    "normalized_kd",
    "probabilistic_transfer",
    "relational_angle",
    "relational_distance",
    "representational_similarity",
    "review_kd",
    "similarity_preserving",
    "soft_targets",
    "variational_information",
]
