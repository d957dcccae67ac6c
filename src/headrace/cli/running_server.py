"""Asking a running server, for the commands that do, and what is told where it does not answer."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

from headrace.errors import ConfigError, HeadraceError


def ask(
    url: str,
    path: str,
    *,
    refusal: type[HeadraceError],
    timeout_s: float,
    body: bytes | None = None,
) -> bytes:
    """The body of the answer to GET, or to POST where there is a ``body`` of JSON.

    Args:
        url: of the server, as ``--url`` has it.
        path: from the first slash on.
        refusal: what the server's own error becomes.
        timeout_s: of silence.
        body: JSON.

    Raises:
        ConfigError: the URL is none, nobody answers there, or no headrace of this version.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url {url}: expected http://HOST:PORT")
    headers = {} if body is None else {"Content-Type": "application/json"}
    request = urllib.request.Request(url.rstrip("/") + path, body, headers)  # noqa: S310 - see above
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        raise _refused(url, error, refusal) from None
    except (OSError, ValueError) as error:
        raise no_server(url, error) from None


def no_server(url: str, error: Exception) -> ConfigError:
    """Nobody answers there, or not as a server would."""
    reason = getattr(error, "reason", error)
    return ConfigError(
        f"no server answers at {url}: {reason}", hint="start one, or name it with --url"
    )


def _refused(
    url: str, error: urllib.error.HTTPError, refusal: type[HeadraceError]
) -> HeadraceError:
    try:
        said = json.loads(error.read())
        return refusal(str(said["error"]), hint=str(said.get("hint", "")))
    except (ValueError, KeyError, TypeError):
        return ConfigError(f"{url} answered {error.code} and is no headrace server of this version")
