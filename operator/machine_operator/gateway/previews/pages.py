"""What people see while there is no answer of the guest: that its machine wakes up, or what is wrong.

The pages tell nothing about the machine, contain all that they need, and work without scripts. With scripts the
waiting page asks until the preview can be reached, by requests that this gateway answers itself.
"""

from __future__ import annotations

import base64
import hashlib
import html
from http import HTTPStatus
from typing import Any, Final

import orjson

from machine_operator.gateway.previews.http import Header
from machine_operator.gateway.problems import GatewayError

__all__ = ["CHECK", "failure_answer", "waiting_answer", "wants_page"]

CHECK: Final = b"x-preview-check"
"""The field of a request that only wants to know whether the preview can be reached."""

_STYLE: Final = (
    ":root{color-scheme:light dark}"
    "body{margin:0;min-height:100vh;display:grid;place-content:center;text-align:center;"
    "font:1.1rem/1.5 system-ui,sans-serif;padding:1rem}"
    "h1{font-size:1.4rem;margin:0 0 .5rem}p{margin:0;opacity:.75;max-width:34rem}"
    "progress{display:block;width:12rem;margin:1.2rem auto 0}"
)
_SCRIPT: Final = (
    "(async()=>{for(;;){const from=Date.now();"
    "try{const answer=await fetch(location.href,{headers:{'X-Preview-Check':'1'},"
    "cache:'no-store',redirect:'manual'});"
    "if(answer.status!==503&&answer.status!==429)break}catch{}"
    "await new Promise(go=>setTimeout(go,Math.max(0,1000-(Date.now()-from))))}"
    "location.reload()})()"
)
_PAGE: Final = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="robots" content="noindex">'
    "<title>{title}</title><style>{style}</style>{more}</head>"
    '<body><main role="status"><h1>{title}</h1><p>{text}</p>{below}</main></body></html>\n'
)
_ADVICE: Final = {
    HTTPStatus.UNAUTHORIZED: "Open it with a link from whoever shared it with you. Links are good for an hour.",
    HTTPStatus.NOT_FOUND: "It may have been closed, or its machine destroyed.",
}


def _source(kind: str, content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"{kind}-src 'sha256-{digest}'"


_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        _source("style", _STYLE),
        _source("script", _SCRIPT),
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
    )
).encode()
_WAITING: Final = _PAGE.format(
    title="Waking up",
    style=_STYLE,
    more='<noscript><meta http-equiv="refresh" content="2"></noscript>',
    text="This preview was asleep. It opens by itself in a moment.",
    below=f'<progress aria-label="Waking up"></progress><script>{_SCRIPT}</script>',
).encode()


def wants_page(scope: Any) -> bool:
    """Whether a person is waiting for the answer to a request: a browser shows it as a page of its own."""
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
        return False
    accepts = navigates = False
    for name, value in scope["headers"]:
        if name == b"accept":
            accepts = b"text/html" in value
        elif name == b"sec-fetch-mode":
            navigates = value == b"navigate"
            if not navigates:
                return False
        elif name == CHECK:
            return False
    return accepts or navigates


def waiting_answer() -> tuple[int, list[Header], bytes]:
    """The page of a machine that wakes up: status, headers, body."""
    return 503, [*_headers(b"text/html; charset=utf-8", _WAITING), (b"retry-after", b"1")], _WAITING


def failure_answer(
    error: GatewayError, *, page: bool, request_id: str
) -> tuple[int, list[Header], bytes]:
    """A failure as a page or as JSON: status, headers, body."""
    more = {**error.headers(), "X-Request-Id": request_id}
    if page:
        phrase = HTTPStatus(error.status).phrase
        told = error.message[:1].upper() + error.message[1:] + "."
        if error.status in _ADVICE:
            told = _ADVICE[HTTPStatus(error.status)]
        text = _PAGE.format(
            title=html.escape(phrase), style=_STYLE, more="", text=html.escape(told), below=""
        )
        body, kind = text.encode(), b"text/html; charset=utf-8"
    else:
        body, kind = orjson.dumps(error.body()), error.media_type.encode()
    added = [(name.lower().encode(), value.encode("latin-1")) for name, value in more.items()]
    return error.status, [*_headers(kind, body), *added], body


def _headers(kind: bytes, body: bytes) -> list[Header]:
    return [
        (b"content-type", kind),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"content-security-policy", _POLICY),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    ]
