"""What may be shown of an address."""

import re


def public(url: str) -> str:
    """The address without what may be secret: user, password, query and fragment.

    Behind a user's colon everything up to the last @ may be the password, a slash that should have been %2F as well.
    """
    bare = re.sub(r"^([\w+.-]+://)(?:[^/?#@]*:.*@|[^/?#]*@)", r"\1", url, flags=re.DOTALL)
    return re.sub(r"[?#].*", "", bare, flags=re.DOTALL)
