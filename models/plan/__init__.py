"""The plan: interventions as inert arrays, its file, and the receipts of its edits. NumPy and safetensors alone."""

from bakeout.models.plan.arrays import Floats, Floats32, Integers, PlanError
from bakeout.models.plan.attention_modules import (
    AttentionRole,
    EndRole,
    WeightRole,
    attention_weight,
    is_of_an_end,
    is_of_attention,
)
from bakeout.models.plan.feed_forward_modules import FeedForwardModules, Layout, Role, StoredWeight
from bakeout.models.plan.kinds.adjustment import AdjustedLayer, Adjustment, Coin
from bakeout.models.plan.kinds.check import LONGEST_REFUSAL, Check, Positions, first_of_mean
from bakeout.models.plan.kinds.description import Decode, Description, Part, counted
from bakeout.models.plan.kinds.intervention import CANARY_NEURONS, Intervention
from bakeout.models.plan.kinds.key_space_detection import KeySpaceDetection
from bakeout.models.plan.kinds.low_rank_update import LowRankUpdate, WeightUpdate
from bakeout.models.plan.kinds.neuron_adjust import NeuronAdjust
from bakeout.models.plan.kinds.regions.cube import Cubes
from bakeout.models.plan.kinds.regions.regions import Regions
from bakeout.models.plan.kinds.registry import find_kind, register_kind
from bakeout.models.plan.kinds.residual_addition import ResidualAddition
from bakeout.models.plan.kinds.residual_edit import LayerDirection, ResidualEdit
from bakeout.models.plan.kinds.residual_projection import ResidualProjection
from bakeout.models.plan.kinds.vector_update import UpdatedVector, VectorUpdate
from bakeout.models.plan.kinds.weight_change import WeightChange
from bakeout.models.plan.kinds.weight_edit import WeightEdit
from bakeout.models.plan.kinds.zero_columns import ZeroColumns, ZeroedColumns
from bakeout.models.plan.model_identity import Keys, ModelIdentity, Routing
from bakeout.models.plan.plan import Canary, Plan

__all__ = [
    "CANARY_NEURONS",
    "LONGEST_REFUSAL",
    "AdjustedLayer",
    "Adjustment",
    "AttentionRole",
    "Canary",
    "Check",
    "Coin",
    "Cubes",
    "Decode",
    "Description",
    "EndRole",
    "FeedForwardModules",
    "Floats",
    "Floats32",
    "Integers",
    "Intervention",
    "KeySpaceDetection",
    "Keys",
    "LayerDirection",
    "Layout",
    "LowRankUpdate",
    "ModelIdentity",
    "NeuronAdjust",
    "Part",
    "Plan",
    "PlanError",
    "Positions",
    "Regions",
    "ResidualAddition",
    "ResidualEdit",
    "ResidualProjection",
    "Role",
    "Routing",
    "StoredWeight",
    "UpdatedVector",
    "VectorUpdate",
    "WeightChange",
    "WeightEdit",
    "WeightRole",
    "WeightUpdate",
    "ZeroColumns",
    "ZeroedColumns",
    "attention_weight",
    "counted",
    "find_kind",
    "first_of_mean",
    "is_of_an_end",
    "is_of_attention",
    "register_kind",
]
