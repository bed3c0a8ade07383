"""Where records are kept: `open_store` gives the store of a home folder."""

import os

TYPE_CHECKING = False  # as in typing, which costs milliseconds; `valetkey token` passes here
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from valetkey.clock import Clock
    from valetkey.config import Paths
    from valetkey.credential import Secret
    from valetkey.stores.keysource import KeySource
    from valetkey.stores.sqlite import SqliteStore

__all__ = ["open_store"]


def open_store(
    paths: "Paths",
    *,
    clock: "Clock",
    key_source: "KeySource | None" = None,
    ask_passphrase: "Callable[[], Secret] | None" = None,
    key_source_kind: str = "auto",
    key_command: "Sequence[str]" = (),
    environ: "Mapping[str, str] | None" = None,
) -> "SqliteStore":
    """Open the store below `paths.home`; makes it where there is none.

    The key is asked for at the first record, not here. `key_source_kind` (keychain, passphrase, key-file, command, or
    auto: keychain, else key-file) counts for a new store only; an old one keeps the source that it has until
    `change_source`. `ask_passphrase` may raise; without it the passphrase comes from VALETKEY_PASSPHRASE_FILE.

    Raises: WrongMode, ForeignStore, StoreTooNew, StoreUnwritable, ConfigError for an unknown kind.
    """
    from valetkey.stores.database import Database
    from valetkey.stores.datakeys import DataKeys
    from valetkey.stores.keysource import sources
    from valetkey.stores.sqlite import SqliteStore

    database = Database(paths)
    made = sources(
        paths,
        given=key_source,
        kind=key_source_kind,
        command=key_command,
        ask_passphrase=ask_passphrase,
        environ=os.environ if environ is None else environ,
    )
    database.open()
    return SqliteStore(database, DataKeys(database, made), clock)
