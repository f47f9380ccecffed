"""Packages of the Cityscapes site for somebody with an account, without a question asked.

The account is in CITYSCAPES_USERNAME and CITYSCAPES_PASSWORD, or where cityscapesscripts' `csDownload` keeps it. The
pages are the ones that tool visits; the tool itself asks on the terminal, deletes credentials that were refused, and
appends to a partial file whatever the server sends.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

import appdirs
import requests

from u2pl.data.sources.http import Again, Network, Refused, patiently
from u2pl.errors import UserError
from u2pl.files import read_json

_SITE = "https://www.cityscapes-dataset.com"
_VARIABLES = ("CITYSCAPES_USERNAME", "CITYSCAPES_PASSWORD")


def open_package(session: requests.Session, name: str, network: Network) -> tuple[str, str]:
    """Log `session` in; the address and the published MD5 of the package `name`.

    Raises Refused without an account, with a wrong one, for an unknown package, and if the site does not answer, and
    UserError if the stored credentials cannot be read.
    """
    account = _credentials()
    if account is None:
        raise Refused(f"no account ({' and '.join(_VARIABLES)}, or what csDownload has stored)")
    try:
        found = patiently(network, name)(_open, session, name, account, network.timeout)
    except Again as error:
        raise Refused(str(error)) from None
    session.max_redirects = 0  # the site redirects whoever is no longer logged in to a page, which is not the package
    return found


def _credentials() -> dict[str, str] | None:
    """User name and password; None if there is no account."""
    found = [os.environ.get(name) for name in _VARIABLES]
    if all(found):
        return dict(zip(("username", "password"), map(str, found), strict=True))
    file = Path(appdirs.user_data_dir("cityscapesscripts", "cityscapes")) / "credentials.json"
    if not file.is_file():
        return None
    with suppress(UserError, TypeError, KeyError):  # whose messages could quote the file
        stored = read_json(file)
        return {"username": stored["username"], "password": stored["password"]}
    raise UserError(file, "something else", "the credentials as csDownload stores them")


def _open(session: requests.Session, name: str, account: dict[str, str], timeout: float) -> tuple[str, str]:
    try:
        session.get(f"{_SITE}/login", allow_redirects=False, timeout=timeout).raise_for_status()
        form = account | {"submit": "Login"}
        answer = session.post(f"{_SITE}/login", data=form, allow_redirects=False, timeout=timeout)
        answer.raise_for_status()
        if answer.status_code != 302:
            raise Refused("user name or password refused")
        packages = session.get(f"{_SITE}/downloads/?list", allow_redirects=False, timeout=timeout)
        packages.raise_for_status()
        query = {package["name"]: f"?packageID={package['packageID']}" for package in packages.json()}
        if name not in query:
            raise Refused("no such package for this account")
        sums = session.get(f"{_SITE}/md5-sum/{query[name]}", allow_redirects=False, timeout=timeout)
        sums.raise_for_status()
        if not (md5 := re.match(r"\s*([0-9a-fA-F]{32})\b", sums.text)):
            raise Refused("no MD5 from the site")
        return f"{_SITE}/file-handling/{query[name]}", md5[1].lower()
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        reason = f"HTTP {status} from the site"
        raise (Again(reason) if status >= 500 else Refused(reason)) from None
    except requests.JSONDecodeError:
        raise Refused("no list of packages from the site") from None
    except requests.RequestException as error:
        raise Again(f"no answer of the site ({type(error).__name__})") from None
    except (TypeError, KeyError):
        raise Refused("an answer of the site that is not understood") from None
