"""Say in one line why an application did not start: what a replica met while it loaded its model."""

import re


def find_reason_of(application: str) -> str | None:
    """Return one line that says what a replica of an application met, if it said anything.

    The message of an :class:`~wm.errors.InputError` where it was one, else the last line of the last traceback.

    Args:
        application: Its name.
    """
    from ray import serve

    deployments = serve.status().applications[application].deployments.values()
    return find_reason("\n".join(deployment.message for deployment in deployments))


def find_reason(text: str) -> str | None:
    """Find the error in what Ray Serve says of deployments that did not start.

    Args:
        text: Messages, with tracebacks.

    Returns:
        One line; None where there is no error in them.
    """
    messages = re.findall(r"InputError: (.+)", text)
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception)\b.*", text, re.MULTILINE)
    return messages[-1] if messages else errors[-1] if errors else None
