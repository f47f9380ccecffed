"""Packages of the Cityscapes site for somebody with an account, without a question asked.

The account is in CITYSCAPES_USERNAME and CITYSCAPES_PASSWORD, or where `csDownload` keeps it. That tool's own download
asks on the terminal, deletes refused credentials and appends whatever a server sends, so only its list is used here.
"""

import os
from pathlib import Path

import appdirs
import requests
from cityscapesscripts.download.downloader import get_available_packages

from u2pl.data.transfer import Network, Refused
from u2pl.errors import UserError
from u2pl.files import read_json

_SITE = "https://www.cityscapes-dataset.com"
VARIABLES = ("CITYSCAPES_USERNAME", "CITYSCAPES_PASSWORD")


def credentials() -> dict[str, str] | None:
    """User name and password; None if there is no account. Raises UserError for a file that is not csDownload's."""
    found = [os.environ.get(name) for name in VARIABLES]
    if all(found):
        return dict(zip(("username", "password"), map(str, found), strict=True))
    file = Path(appdirs.user_data_dir("cityscapesscripts", "cityscapes")) / "credentials.json"
    if not file.is_file():
        return None
    try:
        stored = read_json(file)
        return {"username": stored["username"], "password": stored["password"]}
    except (UserError, TypeError, KeyError):
        # The reason could quote the file.
        raise UserError(file, "something else", "the credentials of csDownload") from None


def open_package(session: requests.Session, name: str, network: Network) -> tuple[str, str]:
    """Log `session` in; the address and the published MD5 of the package `name`.

    Raises Refused without an account, with a wrong one, for an unknown package, and if the site does not answer.
    """
    account = credentials()
    if account is None:
        raise Refused(f"no account ({' and '.join(VARIABLES)}, or what csDownload has stored)")
    session.max_redirects = 0  # the site redirects whoever is not logged in to a page
    try:
        session.get(f"{_SITE}/login", allow_redirects=False, timeout=network.timeout).raise_for_status()
        form = account | {"submit": "Login"}
        answer = session.post(f"{_SITE}/login", data=form, allow_redirects=False, timeout=network.timeout)
        answer.raise_for_status()
        if answer.status_code != 302:
            raise Refused("user name or password refused")
        numbers = {package["name"]: package["packageID"] for package in get_available_packages(session=session)}
        if name not in numbers:
            raise Refused("no such package for this account")
        query = f"?packageID={numbers[name]}"
        sums = session.get(f"{_SITE}/md5-sum/{query}", allow_redirects=False, timeout=network.timeout)
        sums.raise_for_status()
        return f"{_SITE}/file-handling/{query}", sums.text.split()[0]
    except requests.HTTPError as error:
        status = "an error" if error.response is None else f"HTTP {error.response.status_code}"
        raise Refused(f"{status} from the site") from None
    except (requests.RequestException, ValueError, TypeError, KeyError, IndexError) as error:
        raise Refused(f"the site does not answer as it used to ({type(error).__name__})") from None
