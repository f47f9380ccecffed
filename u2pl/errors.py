"""The one exception for what a user can cause."""


def printable(text: str) -> str:
    """The text with control characters escaped: names in an archive or on a server must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class UserError(Exception):
    """A mistake in the inputs: where it is, what was found and what was expected, in one line.

    The command line turns it into exit code 2; everything else that is raised is a defect of the suite.
    """

    def __init__(self, where: object, found: object, expected: object) -> None:
        self.where, self.found, self.expected = str(where), str(found), str(expected)
        super().__init__(printable(" ".join(f"{where}: found {found}, expected {expected}".split())))

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.where, self.found, self.expected)  # so that it survives the way between processes
