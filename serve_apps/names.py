"""Name what requests and the server's recipe both speak of: the two models, and bounds of both."""

FDM, IDM = "fdm", "idm"
MAX_GUIDANCE_SCALE = 100
