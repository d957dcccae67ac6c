"""The TLS context of a server, from the files that the configuration names."""

from __future__ import annotations

import ssl

from headrace.config import TlsConfig
from headrace.errors import ConfigError


def tls_context(tls: TlsConfig) -> ssl.SSLContext:
    """TLS 1.2 and later, by the standard library's defaults for servers.

    Raises:
        ConfigError: a file is missing, no PEM, or key and certificate do not match.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the TLS certificate {tls.certificate} and key {tls.key} cannot be used: {error}",
            hint="both must be PEM files, and the key must belong to the certificate",
        ) from error
    return context
