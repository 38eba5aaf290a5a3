"""Write what ``wm`` itself logs in a replica where Ray Serve's lines are: with the request's id, in the same format."""

import logging

from wm.logs import OWN_LOGGERS


class _ToServe(logging.Handler):
    """Hand records on to Ray Serve's logger; its handlers may change while it runs."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger("ray.serve").handle(record)


def keep_in_serve_log() -> None:
    """Let the loggers of this project write into the replica's log from now on."""
    for name in OWN_LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(handler, _ToServe) for handler in logger.handlers):
            logger.addHandler(_ToServe())
        logger.setLevel(logging.INFO)
        # Else it would be on the process's standard error as well.
        logger.propagate = False
