"""Propose and score actions, sample and score observations, verify, search, roll out."""

from wm.dynamics.code_models import CodeForward, CodeInverse
from wm.dynamics.editor_settings import EditorSettings
from wm.dynamics.fdm import sample_observations, score_observations, speculate_observations
from wm.dynamics.idm import ScoredAction, propose_actions, score_actions
from wm.dynamics.loading import kind_of, load_forward_model, load_inverse_model
from wm.dynamics.observation import Observation, codes_of, observe_codes, pixels_of
from wm.dynamics.pair_folders import PairFolders
from wm.dynamics.pairs import ModelPair
from wm.dynamics.pixel_settings import PixelsSettings
from wm.dynamics.predicted_images import ImagePrediction, ImageRollout, PredictedImage
from wm.dynamics.protocols import ForwardModel, InverseModel, ModelKind, SampleFailure, Samples
from wm.dynamics.roles import BaseSharing, Role, Roles, find_shared_base, load_role, load_roles
from wm.dynamics.rollout import Rollout, RolloutState, Start, Step, StepDone, Trajectory, roll_out
from wm.dynamics.search import Prediction, SearchState, predict_observations
from wm.dynamics.settings import Search, check_draft_length, check_search
from wm.dynamics.tree import Branch, grow_tree
from wm.dynamics.verify import Candidate, verify, verify_batch
from wm.dynamics.world_model import WorldModel
from wm.sampling.noise import Sampling

__all__ = [
    "BaseSharing",
    "Branch",
    "Candidate",
    "CodeForward",
    "CodeInverse",
    "EditorSettings",
    "ForwardModel",
    "ImagePrediction",
    "ImageRollout",
    "InverseModel",
    "ModelKind",
    "ModelPair",
    "Observation",
    "PairFolders",
    "PixelsSettings",
    "PredictedImage",
    "Prediction",
    "Role",
    "Roles",
    "Rollout",
    "RolloutState",
    "SampleFailure",
    "Samples",
    "Sampling",
    "ScoredAction",
    "Search",
    "SearchState",
    "Start",
    "Step",
    "StepDone",
    "Trajectory",
    "WorldModel",
    "check_draft_length",
    "check_search",
    "codes_of",
    "find_shared_base",
    "grow_tree",
    "kind_of",
    "load_forward_model",
    "load_inverse_model",
    "load_role",
    "load_roles",
    "observe_codes",
    "pixels_of",
    "predict_observations",
    "propose_actions",
    "roll_out",
    "sample_observations",
    "score_actions",
    "score_observations",
    "speculate_observations",
    "verify",
    "verify_batch",
]
