"""Say what is wrong with an object store, and what to do: missing buckets, credentials, regions, servers.

Not known here: how objects are read and written.
"""

import re
import socket
from typing import TYPE_CHECKING
from urllib.parse import quote

from wm.errors import InputError, to_line
from wm.files.clients import has_login
from wm.files.uris import parse_address, scheme_of

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

TRANSIENT = re.compile(
    r"SLOW_DOWN|SlowDown|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|INTERNAL_ERROR|InternalError|REQUEST_TIMEOUT|THROTTLING|"
    r"NETWORK_CONNECTION|curlCode|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|[Tt]imeout|[Tt]imed out|"
    r"(HTTP (status|response code|error code)[: ]*|HTTP )(429|5\d\d)|Connection (reset|refused)|incomplete"
)

NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|NoSuchBucket|[Bb]ucket.{0,80}(not found|does not exist)")


class BucketError(InputError):
    """An object store refuses, lacks or does not deliver something."""

    def __init__(self, uri: str, detail: str, reason: str = "unreadable", transient: bool = False) -> None:
        """Build the error.

        Args:
            uri: Of the object or folder.
            detail: What happened, and what to do.
            reason: ``missing_file``, ``unreadable`` or ``time_out``; see :class:`wm.files.storage_errors.StorageError`.
            transient: The same request may well succeed later.
        """
        super().__init__(uri, detail, reason, transient)  # all arguments, so that it travels between processes
        self.uri, self.detail, self.reason, self.transient = uri, detail, reason, transient

    def __str__(self) -> str:
        return f"{self.uri}: {self.detail}"


_LOGINS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}
_EXPIRED = r"EXPIRED|[Ee]xpired|invalid_grant"
_NOT_ACCEPTED = (
    r"INVALID_ACCESS_KEY|InvalidAccessKey|SIGNATURE|SignatureDoesNotMatch|INVALID_CLIENT_TOKEN|UNRECOGNIZED_CLIENT|"
    r"UNAUTHENTICATED|\b401\b|InvalidToken|TOO_SKEWED|TooSkewed"
)
_DENIED = r"ACCESS_DENIED|AccessDenied|PERMISSION_DENIED|\b403\b|[Ff]orbidden"

_HINTS: tuple[tuple[str, str], ...] = (
    (
        r"\b411\b|MissingContentLength",
        "the server takes no upload without its length; set AWS_REQUEST_CHECKSUM_CALCULATION=when_required",
    ),
    (
        # Google says of a wrong clock what it says of a login that has ended, the difference is in the rest
        # (https://developers.google.com/identity/protocols/oauth2/service-account#jwt-error-codes).
        r"REQUEST_TIME_TOO_SKEWED|RequestTimeTooSkewed|Signature (expired|not yet current)|"
        r"short-lived token|Check your iat|invalid_grant.*\biat\b",
        "the clock of {host} is wrong by more than the store allows; set it (NTP)",
    ),
    (_EXPIRED, "the credentials have expired on {host}; renew them"),
    (_NOT_ACCEPTED, "the store does not accept the credentials of {host}; check {login}"),
    (
        r"PermanentRedirect|PERMANENT_REDIRECT|AuthorizationHeaderMalformed|IllegalLocationConstraint|\b301\b",
        "the bucket is in another region; set AWS_REGION, or add ?region=NAME to the URI",
    ),
    (_DENIED, "the store refuses this to {host}: {login}"),
)


def explain_error(uri: str, error: BaseException, act: str) -> BucketError:
    """Convert an error of pyarrow, whose kinds of remote errors differ in their words only.

    Args:
        uri: Of the object or folder.
        error: As pyarrow raised it.
        act: What was tried: ``read``, ``write`` or ``remove``.
    """
    text = to_line(error, 300)
    scheme, bucket = scheme_of(uri), parse_address(uri).bucket
    if NO_BUCKET.search(text) or (
        act == "write" and (isinstance(error, FileNotFoundError) or re.search(r"NOT_FOUND|RESOURCE_NOT_FOUND", text))
    ):
        return BucketError(
            uri, f"no such bucket ({bucket}); make it first, or check its name and server", "missing_file"
        )
    if isinstance(error, FileNotFoundError) or re.search(r"NO_SUCH_KEY|NOT_FOUND", text):
        return BucketError(uri, "no such object or folder", "missing_file")
    # Without a login requests are not signed: whatever the store answers, that is the reason.
    login = _LOGINS[scheme]
    rights = f"these credentials may not {act} here" if has_login(scheme) else f"no credentials found; set {login}"
    # Google's client puts a paragraph of its own before what the server said.
    long_text = to_line(error, 2000)
    for pattern, hint in _HINTS:
        if re.search(pattern, long_text):
            words = rights if "refuses" in hint else login
            return BucketError(uri, f"{hint.format(host=socket.gethostname(), login=words)} ({text})")
    is_transient = bool(TRANSIENT.search(text))
    if re.search(r"curlCode: (6|7)\b|Could ?n.t (connect|resolve)|Connection refused", text):
        return BucketError(
            uri, f"no connection to its server; check AWS_ENDPOINT_URL and network ({text})", "unreadable", True
        )
    if re.search(r"curlCode: 28|[Tt]imeout|[Tt]imed out|DEADLINE_EXCEEDED", text):
        return BucketError(uri, f"no answer in time ({text})", "time_out", True)
    return BucketError(uri, f"cannot {act} it: {text}", transient=is_transient)


def explain_refused_login(uri: str, error: BaseException, client: "FileSystem") -> str | None:
    """Distinguish a machine that a store does not let in from a forbidden object, after an object was not read.

    A refused ``HEAD`` has no body and so no reason: the store is asked for a listing, whose answer names it.

    Args:
        uri: Of the object.
        error: As pyarrow raised it.
        client: With which the object was read.

    Returns:
        What is wrong, with URI and host: this machine has no credentials and an anonymous request was denied, or the
        store does not accept those it has, or they have expired. None: the object alone is at fault.
    """
    from pyarrow import fs

    address = parse_address(uri)
    asks_anonymously = dict(address.options).get("anonymous", "").lower() in ("true", "1")
    # Keys and buckets may have any words, such as a number that is a status too.
    text = _without_names(error, address.bucket, address.key)
    if asks_anonymously or not re.search(rf"{_EXPIRED}|{_NOT_ACCEPTED}|{_DENIED}|\b400\b", text):
        return None
    if not has_login(address.scheme):
        refused = re.search(rf"{_NOT_ACCEPTED}|{_DENIED}", text)
        advice = f"set {_LOGINS[address.scheme]}; if the bucket is public, add ?anonymous=true to the URI"
        reason = f"{uri}: the store refuses this to {socket.gethostname()}: no credentials found; {advice}"
        return f"{reason} ({to_line(error, 300)})" if refused else None
    try:
        client.get_file_info(fs.FileSelector(f"{address.bucket}/wm-login/", allow_not_found=True))
    except OSError as answer:
        if re.search(rf"{_EXPIRED}|{_NOT_ACCEPTED}", _without_names(answer, address.bucket, address.key)):
            return str(explain_error(uri, answer, "read"))
    return None


def _without_names(error: BaseException, bucket: str, key: str) -> str:
    text = to_line(error)
    for name in sorted({key, quote(key), quote(key, safe=""), bucket} - {""}, key=len, reverse=True):
        # Between other signs: a key of one digit is no part of a status.
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "", text)
    return text
