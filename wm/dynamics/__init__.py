"""What a world model does: propose and score actions, sample and score observations, verify."""

from wm.dynamics.fdm import sample_observations, score_observations
from wm.dynamics.idm import ScoredAction, propose_actions, score_actions
from wm.dynamics.verify import Candidate, verify, verify_batch
from wm.sampling.noise import Sampling

__all__ = [
    "Candidate",
    "Sampling",
    "ScoredAction",
    "propose_actions",
    "sample_observations",
    "score_actions",
    "score_observations",
    "verify",
    "verify_batch",
]
