"""What a world model does: propose and score actions, sample and score observations, verify."""

from wm.dynamics.fdm import sample_observations, score_observations, speculate_observations
from wm.dynamics.idm import ScoredAction, propose_actions, score_actions
from wm.dynamics.roles import Role, Roles, Weights, load_role, load_roles, need_one_base
from wm.dynamics.verify import Candidate, verify, verify_batch
from wm.sampling.decoder import Decoder
from wm.sampling.noise import Sampling

__all__ = [
    "Candidate",
    "Decoder",
    "Role",
    "Roles",
    "Sampling",
    "ScoredAction",
    "Weights",
    "load_role",
    "load_roles",
    "need_one_base",
    "propose_actions",
    "sample_observations",
    "score_actions",
    "score_observations",
    "speculate_observations",
    "verify",
    "verify_batch",
]
