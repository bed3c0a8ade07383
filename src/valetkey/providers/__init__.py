"""The providers there are: built in, the user's own, and those of plugins. One file is one provider."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from valetkey.config import Paths, load
from valetkey.errors import BuiltInProvider, InvalidProvider, UnknownProvider, ValetkeyError
from valetkey.provider import Provider
from valetkey.providers import plugins
from valetkey.providers.reader import Origin, read_file

__all__ = ["Catalogue", "Problem", "catalogue"]

BUILT_IN = Path(__file__).parent
_OVERRIDE = re.compile(r"^\s*override\s*=\s*true\b", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A file or a plugin that serves no provider, and why. Only it is disabled."""

    path: str
    error: ValetkeyError


@dataclass(frozen=True, kw_only=True)
class _Place:
    path: Path
    origin: Origin


def catalogue(paths: Paths) -> Catalogue:
    """Give the catalogue. Nothing is read before it is asked for."""
    return Catalogue(paths)


class Catalogue:
    """Finds declarations by their file names. `get` reads one file; what it read it keeps."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._read: dict[str, Provider] = {}

    def get(self, name: str) -> Provider:
        """Give the provider of this id or alias.

        Raises: UnknownProvider, naming the nearest; InvalidProvider when its file is broken; ConfigError.
        """
        if name not in self._read:
            place = self._place_of(name)
            self._read[name] = self._aliased(name) if place is None else self._load(place)
        return self._read[name]

    def ids(self) -> list[str]:
        """Give all ids in order, by file names alone: a file may still turn out to be broken."""
        return sorted({path.stem for path in (*_files(BUILT_IN), *self.files(), *self._plugin_files)})

    @property
    def paths(self) -> Paths:
        """Give where the user's own files are."""
        return self._paths

    def files(self) -> list[Path]:
        """Give the user's own files, readable or not."""
        return _files(self._paths.providers)

    def forget(self, name: str) -> None:
        """Read this one again when it is next asked for: its file was written or deleted."""
        self._read.pop(name, None)

    def built_in(self) -> list[str]:
        """Give the ids that nobody else may take."""
        return sorted(path.stem for path in _files(BUILT_IN))

    def all(self) -> list[Provider]:
        """Give every provider that can be read, by id; `problems` has the rest."""
        return list(self._readable())

    def custom(self) -> list[Provider]:
        """Give the user's own providers that can be read."""
        own = [path.stem for path in self.files()]
        return [p for p in self._readable() if p.id in own and p.origin == "user"]

    @property
    def problems(self) -> list[Problem]:
        """Give what is broken or refused. Reads every file."""
        return [*self._failed_plugins, *self._refused(), *self._unreadable()]

    # --- where a provider is -----------------------------------------------------------------

    @cached_property
    def _plugins(self) -> tuple[list[Path], list[Problem]]:
        found, failed = plugins.declared()
        return found, [Problem(path=name, error=error) for name, error in failed]

    @property
    def _plugin_files(self) -> list[Path]:
        return self._plugins[0]

    @property
    def _failed_plugins(self) -> list[Problem]:
        return self._plugins[1]

    def _others(self) -> Iterator[_Place]:
        for path in self.files():
            yield _Place(path=path, origin="user")
        for path in self._plugin_files:
            yield _Place(path=path, origin="plugin")

    def _place_of(self, name: str) -> _Place | None:
        """Find the file that serves this id: the user's, a plugin's, else the built-in one."""
        built_in = next((path for path in _files(BUILT_IN) if path.stem == name), None)
        for place in self._others():
            # A built-in id is given away only where the file says so, even if the rest of it is broken: falling back
            # to the built-in declaration would then send a proxy's key to the provider's own hosts.
            if place.path.stem == name and (built_in is None or _says_override(place.path)):
                return place
        return None if built_in is None else _Place(path=built_in, origin="built-in")

    def _load(self, place: _Place) -> Provider:
        provider = read_file(place.path, origin=place.origin)
        client_id = self._client_ids.get(provider.id)
        if client_id is None:
            return provider
        methods = (m if m.client_id is None else dataclasses.replace(m, client_id=client_id) for m in provider.auth)
        return dataclasses.replace(provider, auth=tuple(methods))

    def _aliased(self, name: str) -> Provider:
        """Look through all declarations, the built-in ids first: only a name that is no id comes here."""
        found = [provider for provider in self._readable() if name in provider.aliases]
        if found:
            built_in = self.built_in()
            return min(found, key=lambda provider: provider.id not in built_in)
        ids = self.ids()
        near = difflib.get_close_matches(name.lower(), ids, n=3, cutoff=0.65)
        near += [i for i in ids if name and i.startswith(name.lower()) and i not in near][:3]
        raise UnknownProvider(
            f"there is no provider {name[:60]!r}",
            hint=f"did you mean {' or '.join(near[:3])}?"
            if near
            else "see `valetkey providers list`, or add it: `valetkey providers add`",
        )

    @cached_property
    def _client_ids(self) -> dict[str, str]:
        """Give config.toml's `providers.<id>.client_id`: a client id is data, and may be the user's own."""
        return load({"VALETKEY_HOME": str(self._paths.home)}).client_ids()

    # --- all of them -------------------------------------------------------------------------

    def _readable(self) -> Iterator[Provider]:
        for name in self.ids():
            try:
                yield self.get(name)
            except InvalidProvider:
                continue

    def _unreadable(self) -> Iterator[Problem]:
        for name in self.ids():
            try:
                self.get(name)
            except InvalidProvider as error:
                place = self._place_of(name)
                yield Problem(path=str(place.path) if place else name, error=error)

    def _refused(self) -> Iterator[Problem]:
        taken = dict.fromkeys(self.built_in(), "built in")
        seen: set[str] = set()
        for place in self._others():
            name = place.path.stem
            if (name in taken and not _says_override(place.path)) or name in seen:
                yield Problem(
                    path=str(place.path),
                    error=BuiltInProvider(
                        f"{place.path} uses the id {name}, which is {taken.get(name, 'declared twice')}",
                        hint="give it another name, or write `override = true` in it",
                        provider=name,
                    ),
                )
            else:
                seen.add(name)
        for provider in self._readable():
            for alias in provider.aliases:
                # An id comes before every alias; a user who gave one to a file of their own meant it.
                holder = alias if alias in self.ids() else self._aliased(alias).id
                meant = provider.id in taken and holder in (path.stem for path in self.files())
                if holder != provider.id and not meant:
                    yield _taken_alias(provider, alias, holder)


def _taken_alias(provider: Provider, alias: str, holder: str) -> Problem:
    return Problem(
        path=provider.path,
        error=InvalidProvider(
            f"{provider.path} has the alias {alias}, which leads to {holder}",
            hint=f"give one of them another name: {provider.id} is not reached by it",
            provider=provider.id,
        ),
    )


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".toml")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InvalidProvider(f"{folder} cannot be read", hint="check that the folder is yours: `ls -ld` it") from error


def _says_override(path: Path) -> bool:
    try:
        return _OVERRIDE.search(path.read_text(encoding="utf-8", errors="replace")) is not None
    except OSError:
        return False
