"""Certificates for DICOM over TLS (PS3.15 B.9): whom to believe, and who we are.

Files in, contexts of the standard library out. Both sides are always verified.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from encoders.errors import InputError

CA, CERTIFICATE = "CROSSREAD_DICOM_TLS_CA", "CROSSREAD_DICOM_TLS_CERTIFICATE"


@dataclass(frozen=True)
class Tls:
    """Whom to believe (PEM), and our own certificate with its key in one file (PEM)."""

    ca_bundle: Path
    certificate: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Tls:
        """`CROSSREAD_DICOM_TLS_CA` and `CROSSREAD_DICOM_TLS_CERTIFICATE`.

        Raises:
            InputError: one of them is not set.
        """
        if missing := [name for name in (CA, CERTIFICATE) if not environment.get(name)]:
            raise InputError(f"TLS needs {' and '.join(missing)}: files with PEM certificates")
        return cls(Path(environment[CA]), Path(environment[CERTIFICATE]))

    def client(self) -> ssl.SSLContext:
        """To call a node by: its name must be in its certificate.

        Raises:
            InputError: the files hold no certificates.
        """
        return self._loaded(ssl.Purpose.SERVER_AUTH)

    def server(self) -> ssl.SSLContext:
        """To be called with: only callers whose certificate is signed by the authority.

        Raises:
            InputError: the files hold no certificates.
        """
        context = self._loaded(ssl.Purpose.CLIENT_AUTH)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _loaded(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(purpose, cafile=str(self.ca_bundle))
            context.load_cert_chain(str(self.certificate))
        except (OSError, ssl.SSLError) as error:
            raise InputError(
                f"the files of {CA} and {CERTIFICATE} hold no PEM certificates and key"
            ) from error
        return context
