"""Reading tar and zip archives member by member, refusing everything that could write outside a folder."""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from u2pl.errors import UserError

_LARGEST = 1 << 25  # bytes of a member; real images and masks have a tenth of it
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)


def _safe_name(path: Path, name: str) -> str:
    """The member's name without a leading './'. Raises UserError for absolute paths and '..'."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or (pure.parts and ":" in pure.parts[0]):
        raise UserError(path, f"member {name!r}", "members inside the archive's own folder")
    return str(pure)


class ArchiveReader:
    """The regular files of one archive. Constructing it checks every member, wanted or not."""

    def __init__(self, path: Path, opened: tarfile.TarFile | zipfile.ZipFile) -> None:
        self.path = path
        self._opened = opened
        self._members: dict[str, tarfile.TarInfo | zipfile.ZipInfo] = {}
        if isinstance(opened, tarfile.TarFile):
            for member in opened.getmembers():
                name = _safe_name(path, member.name)
                if not (member.isreg() or member.isdir()):
                    raise UserError(path, f"member {member.name!r}, a link or a device", "regular files and folders")
                if member.isreg():
                    self._members[name] = member
        else:
            for info in opened.infolist():
                name = _safe_name(path, info.filename)
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise UserError(path, f"member {info.filename!r}, a link or a device", "regular files and folders")
                if not info.is_dir():
                    self._members[name] = info

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield (name, bytes) in the archive's order, which a compressed tar reads in one pass.

        Raises UserError if a member is missing, damaged, or far larger than any image.
        """
        wanted = set(names)
        missing = sorted(wanted - self._members.keys())
        if missing:
            raise UserError(self.path, f"no member {missing[0]!r}", "every image and mask its lists name")
        for name, member in self._members.items():
            if name not in wanted:
                continue
            size = member.size if isinstance(member, tarfile.TarInfo) else member.file_size
            if size > _LARGEST:
                raise UserError(f"{self.path}:{name}", f"{size} bytes", f"at most {_LARGEST}")
            try:
                content = self._content(member)
            except _BROKEN as error:
                raise UserError(self.path, f"{name}: {error}", "a complete archive") from error
            yield name, content

    def _content(self, member: tarfile.TarInfo | zipfile.ZipInfo) -> bytes:
        if isinstance(self._opened, tarfile.TarFile):
            assert isinstance(member, tarfile.TarInfo)
            stream = self._opened.extractfile(member)
            assert stream is not None  # regular files only
            return stream.read()
        assert isinstance(member, zipfile.ZipInfo)
        return self._opened.read(member)


@contextmanager
def open_archive(path: Path) -> Iterator[ArchiveReader]:
    """Open a tar (plain or compressed) or zip archive.

    Raises UserError if it is missing, damaged, or has a member with an absolute path, '..', a link or a device.
    """
    if not path.is_file():
        raise UserError(path, "no file", "the archive (run `u2pl data fetch`, or put it there)")
    try:
        opened = zipfile.ZipFile(path) if zipfile.is_zipfile(path) else tarfile.TarFile.open(path)
    except _BROKEN as error:
        raise UserError(path, error, "a tar or zip archive") from error
    with opened:
        try:
            reader = ArchiveReader(path, opened)
        except _BROKEN as error:
            raise UserError(path, error, "a complete archive") from error
        yield reader
