"""The storage-initializer: copies what a storageUri names into the pod's model directory.

``file://``, ``pvc://`` and whatever fsspec has a file system for (``s3://``, ``gs://``, ``az://``, ``https://``,
``hf://``). A mirror map turns URI prefixes into local directories, for use without a network.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

_EXTRAS = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "https": "aiohttp",
    "http": "aiohttp",
}


class StorageError(Exception):
    pass


class Storage:
    """``mirrors`` maps URI prefixes to local directories; ``volumes`` holds a directory a claim for ``pvc://``."""

    def __init__(self, volumes: Path, mirrors: dict[str, str] | None = None) -> None:
        self._volumes = volumes
        self._mirrors = mirrors or {}

    async def download(self, uri: str, into: Path) -> None:
        """Raises StorageError; what was there before is replaced only when the copy is whole."""
        await asyncio.to_thread(self._download, uri, into)

    def _download(self, uri: str, into: Path) -> None:
        partial = into.with_name(into.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            source = self._local_source(uri)
            if source is not None:
                _copy(source, partial, uri)
            else:
                _fetch(uri, partial)
            shutil.rmtree(into, ignore_errors=True)
            partial.rename(into)
        except OSError as error:
            raise StorageError(f"could not download {uri}: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _local_source(self, uri: str) -> Path | None:
        for prefix, directory in self._mirrors.items():
            if uri.startswith(prefix):
                return Path(directory) / uri[len(prefix) :].lstrip("/")
        scheme, separator, rest = uri.partition("://")
        if not separator:
            raise StorageError(f"storageUri {uri!r} has no scheme; expected one such as file://, pvc:// or s3://")
        if scheme == "file":
            return Path("/" + rest.lstrip("/"))
        if scheme == "pvc":
            claim, _, inner = rest.partition("/")
            root = (self._volumes / claim).resolve()
            source = (root / inner).resolve()
            if not source.is_relative_to(root):
                raise StorageError(f"{uri}: the path leaves the claim")
            return source
        return None


def _copy(source: Path, into: Path, uri: str) -> None:
    if source.is_dir():
        shutil.copytree(source, into)
    elif source.is_file():
        into.mkdir(parents=True)
        shutil.copy2(source, into)
    else:
        raise StorageError(f"{uri}: {source} does not exist")


def _fetch(uri: str, into: Path) -> None:
    import fsspec

    scheme = uri.partition("://")[0]
    try:
        filesystem, root = fsspec.core.url_to_fs(uri)
        into.mkdir(parents=True)
        if filesystem.isdir(root):
            filesystem.get(root.rstrip("/") + "/", str(into) + "/", recursive=True)
        else:
            filesystem.get(root, str(into / Path(root).name))
    except ImportError as error:
        package = _EXTRAS.get(scheme, "its fsspec file system")
        raise StorageError(f"{uri}: install {package} to read {scheme}://") from error
    except ValueError as error:
        raise StorageError(f"{uri}: {error}") from error
    except Exception as error:  # each file system raises its own kind
        raise StorageError(f"could not download {uri}: {type(error).__name__}: {error}") from error
