"""Name what requests and the server's recipe both speak of: the recipe's models, and bounds of both."""

FDM, IDM = "fdm", "idm"
# A second forward model, where the recipe has one.
BASELINE = "baseline"
MAX_GUIDANCE_SCALE = 100
# In the state of a request: seconds that it waited for the first replica of a model.
REPLICA_WAIT = "replica_wait_s"
