"""Name what requests and the server's recipe both speak of: the two models, and bounds of both."""

FDM, IDM = "fdm", "idm"
MAX_GUIDANCE_SCALE = 100
# In the state of a request: seconds that it waited for the first replica of a model.
REPLICA_WAIT = "replica_wait_s"
