"""Reading tar and zip archives member by member, refusing everything that could write outside a folder."""

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from u2pl.errors import UserError

_LARGEST = 1 << 25  # bytes of a member; real images and masks have a tenth of it
_PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}  # a tar's first bytes


def _safe_name(path: Path, name: str) -> str:
    """The member's name without a leading './'. Raises UserError for absolute paths, '..' and an empty name."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or ":" in (pure.parts or ":")[0]:
        raise UserError(path, f"member {name!r}", "members inside the archive's own folder")
    return str(pure)


class _Bounded:
    """A stream that refuses to be read in one piece of more than a member: damaged headers ask for gigabytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LARGEST:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)


class ArchiveReader:
    """The regular files of one archive. Constructing it checks every member, wanted or not."""

    def __init__(self, path: Path, opened: tarfile.TarFile | zipfile.ZipFile) -> None:
        self.path = path
        self._opened = opened
        self._members: dict[str, tarfile.TarInfo | zipfile.ZipInfo] = {}
        if isinstance(opened, tarfile.TarFile):
            for member in opened.getmembers():
                if not (member.isreg() or member.isdir()):
                    raise UserError(path, f"member {member.name!r}, a link or a device", "regular files and folders")
                self._add(member.name, member, is_file=member.isreg())
        else:
            for info in opened.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise UserError(path, f"member {info.filename!r}, a link or a device", "regular files and folders")
                self._add(info.filename, info, is_file=not info.is_dir())

    def _add(self, name: str, member: tarfile.TarInfo | zipfile.ZipInfo, *, is_file: bool) -> None:
        if not is_file and PurePosixPath(name) == PurePosixPath():  # "./", as `tar c .` writes it
            return
        safe = _safe_name(self.path, name)
        if is_file and safe in self._members:
            raise UserError(self.path, f"two members {name!r}", "one of each name")
        if is_file:
            self._members[safe] = member

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
                content = self._content(member, size)
            except Exception as error:  # the libraries raise whatever the damaged bytes lead to
                raise UserError(self.path, f"{name}: {_reason(error)}", "a complete archive") from error
            yield name, content

    def _content(self, member: tarfile.TarInfo | zipfile.ZipInfo, size: int) -> bytes:
        if isinstance(self._opened, tarfile.TarFile):
            assert isinstance(member, tarfile.TarInfo)
            stream = self._opened.extractfile(member)
        else:
            assert isinstance(member, zipfile.ZipInfo)
            stream = self._opened.open(member)
        assert stream is not None  # regular files only
        with stream:
            # One byte more than there should be: the end is reached, where zipfile compares the CRC. Without a number
            # zipfile inflates without bound, whatever size the archive declares.
            return stream.read(size + 1)


@contextmanager
def open_archive(path: Path) -> Iterator[ArchiveReader]:
    """Open a tar (plain or compressed) or zip archive.

    Raises UserError if it is missing, damaged, or has a member with an absolute path, '..', no name or another one's
    name, a link or a device.
    """
    if not path.is_file():
        raise UserError(path, "no file", "the archive (run `u2pl data fetch`, or put it there)")
    try:
        opened = zipfile.ZipFile(path) if zipfile.is_zipfile(path) else _open_tar(path)
    except Exception as error:  # the libraries raise whatever the damaged bytes lead to
        raise UserError(path, _reason(error), "a tar or zip archive") from error
    with opened:
        try:
            reader = ArchiveReader(path, opened)
        except UserError:
            raise
        except Exception as error:
            raise UserError(path, _reason(error), "a complete archive") from error
        yield reader


def _open_tar(path: Path) -> tarfile.TarFile:
    with path.open("rb") as stream:
        first = stream.read(5)
    opener: Any = next((opener for magic, opener in _PACKED.items() if first.startswith(magic)), open)
    stream = opener(path, "rb")
    try:
        return tarfile.open(fileobj=_Bounded(stream), mode="r:")  # type: ignore[call-overload, no-any-return]
    except BaseException:
        stream.close()
        raise


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
