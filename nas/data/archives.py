"""The official files of a known set: in a folder of the user or downloaded, verified by checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from nas.data.sets import Known
from nas.errors import DataError


def folders(name: str, directory: Path) -> tuple[Path, Path]:
    """Where a set may lie in the folder that the user gave: in a folder of its name, or in it directly."""
    return directory / name, directory


def not_found(name: str, lacking: Sequence[str], looked: Sequence[Path]) -> DataError:
    """The error for a set whose files are not all where the user said; nothing is downloaded then."""
    places = " and ".join(str(folder) for folder in looked)
    return DataError(f"data set {name!r} lacks {', '.join(lacking)} (looked in {places})")


def verified(path: Path, md5: str) -> Path:
    """`path`, once it is known to be the official file; raises DataError where it is not."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from None
    if found != md5:
        raise DataError(f"{str(path)!r} is damaged or not the official file: its MD5 is {found}, not {md5}")
    return path


def download(name: str, entry: Known, progress: bool) -> Path:
    """The folder in the user's cache that now holds every verified file of a set; raises DataError.

    What is there already is verified and not downloaded again.
    """
    import pooch  # here and not above: it is slow to import, and most loads download nothing

    folder = Path(pooch.os_cache("nas")) / name
    for file, md5 in entry.md5.items():
        _download_one(name, file, md5, entry.urls, folder, progress)
    return folder


def _download_one(name: str, file: str, md5: str, urls: Sequence[str], folder: Path, progress: bool) -> None:
    import pooch

    downloader = pooch.HTTPDownloader(progressbar=progress, chunk_size=1 << 16)
    failures = []
    for url in urls:
        try:
            pooch.retrieve(f"{url}{file}", f"md5:{md5}", fname=file, path=folder, downloader=downloader)
            return
        except (OSError, ValueError) as error:  # requests' are OSErrors; a wrong checksum is a ValueError
            failures.append(f"{url}{file}: {_reason(error)}")
    raise DataError(
        f"cannot download data set {name!r} ({'; '.join(failures)}); "
        f"if you have its files, give their folder with --data-dir"
    )


def _reason(error: OSError | ValueError) -> str:
    """Why a download failed, in a few words: requests' own texts are a paragraph of nested exceptions."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP status {response.status_code}"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "wrong checksum" if "hash" in str(error) else str(error)
