"""Plain text to LaTeX that compiles without any package."""

import re
import unicodedata

from u2pl.errors import UserError

SYMBOLS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    # Behind the \\ of the row above they would be its arguments.
    "[": "{[}",
    "*": "{*}",
    "–": "--",
    "—": "---",
    "−": r"$-$",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\ldots{}",
    "\u00a0": "~",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≠": r"$\neq$",
    "→": r"$\rightarrow$",
    "∞": r"$\infty$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "§": r"$^{\S}$",
    "✓": r"$\surd$",
    "✗": r"$\times$",
}
# Greek capitals that look Latin, and omicron, have no command.
SYMBOLS |= dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧο", "ABEZHIKMNOPTXo", strict=True))
GREEK = re.compile("GREEK (?P<case>SMALL|CAPITAL) LETTER (?P<letter>[A-Z]+)")
SCRIPTS = {"<sub>": "_", "<super>": "^"}


def escape(text: str) -> str:
    """`text` as LaTeX source: specials escaped, Greek letters and sub- or superscripts as mathematics.

    Raises UserError for a character that LaTeX could not set.
    """
    return "".join(_escape_character(character) for character in text)


def _escape_character(character: str) -> str:
    if character in SYMBOLS:
        return SYMBOLS[character]
    if character.isascii() and character.isprintable():
        return character
    name = unicodedata.name(character, "")
    if greek := GREEK.fullmatch(name):
        command = greek["letter"].lower().replace("lamda", "lambda")
        return rf"$\{command.capitalize() if greek['case'] == 'CAPITAL' else command}$"
    script, _, code = unicodedata.decomposition(character).partition(" ")
    if script in SCRIPTS and " " not in code:
        return f"${SCRIPTS[script]}{{{chr(int(code, 16))}}}$"
    if ord(character) < 0x180 and name.startswith("LATIN "):
        return character  # accented letters: UTF-8 is LaTeX's input encoding
    raise UserError("LaTeX text", f"the character {character!r} ({name})", "a letter, a digit or a common symbol")
