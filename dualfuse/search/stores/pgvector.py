"""Embeddings in PostgreSQL with the extension pgvector: one table per collection and model, and one of versions."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from dualfuse.errors import DualfuseError, MissingExtraError
from dualfuse.search.stores.base import Match, Matches, check_batch, check_width
from dualfuse.search.stores.filters import Filter, Metadata, parse
from dualfuse.search.stores.sql import pack, to_sql, unpack

if TYPE_CHECKING:
    from psycopg import Connection

Result = TypeVar("Result")
INDEXED = 10_000  # rows from which a graph (HNSW) is searched instead of all rows
MAX_EF = 1000  # the largest hnsw.ef_search
SCHEMA = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE IF NOT EXISTS dualfuse_stores (
    name text PRIMARY KEY, fingerprint text NOT NULL, width integer NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0)
"""


class PgvectorStore:
    """A :class:`~dualfuse.search.stores.base.VectorStore` in a database.

    All changes between two calls of :meth:`flush` are one transaction, of names, metadata and embeddings. Filtered
    searches read all rows that match, so they are exact. Others use an HNSW index of pgvector from 10,000 rows on,
    which is approximate.
    """

    def __init__(self, fingerprint: str, address: str, name: str) -> None:
        """Connect; see :meth:`open`."""
        self.fingerprint, self._address, self._name = fingerprint, address, name
        self._lock, self._is_changing = threading.RLock(), False
        self._connection = _connect(address)
        self._table = "dualfuse_" + re.sub(r"\W", "_", name.lower())[:50]
        self._width = 0

    @classmethod
    def open(cls, fingerprint: str, address: str, name: str) -> PgvectorStore:
        """Open the store ``name`` of a model in the database at ``address``, or create it.

        An empty address stands for that of the environment: DATABASE_URL, or PGHOST and the other variables of libpq.
        Raises ``MissingExtraError`` without psycopg, and ``DualfuseError`` if the database cannot be reached, lacks
        pgvector, or has a store of this name with the embeddings of another model.
        """
        store = cls(fingerprint, address or os.environ.get("DATABASE_URL", ""), name)
        try:
            store._create()
        except BaseException:
            store.close()
            raise
        return store

    @property
    def location(self) -> str:
        """Server, database and table, without credentials."""
        info = self._connection.info
        return f"table {self._table} of the database {info.dbname} at {info.host or 'localhost'}:{info.port}"

    @property
    def version(self) -> str:
        """The number of flushes that changed the store."""
        return self._read(self._version)

    def close(self) -> None:
        """Disconnect; changes that were not flushed are lost."""
        self._connection.close()

    def __del__(self) -> None:
        """Disconnect."""
        if hasattr(self, "_connection"):
            self._connection.close()

    def entries(self) -> Mapping[str, Metadata]:
        """Return the metadata of every stored embedding by name."""
        rows = self._read(lambda: self._rows("SELECT name, fields FROM {table} ORDER BY name"))
        return {bytes(name).decode("utf-8", "surrogatepass"): unpack(fields) for name, fields in rows}

    def count(self, where: Filter | None = None) -> int:
        """Return the number of embeddings, or of those that match a filter."""
        condition, values = to_sql(parse(where or {}))
        return self._read(lambda: self._rows(f"SELECT count(*) FROM {{table}} WHERE {condition}", values))[0][0]

    def add(self, names: Sequence[str], embeddings: Tensor, metadata: Sequence[Metadata]) -> None:
        """Store B embeddings (B, D), float32; one whose name is already stored replaces it."""
        check_batch(names, embeddings, metadata, self._width)
        if not len(names):
            return
        if not self._width:
            self._set_width(embeddings.shape[1])
        self._begin()
        rows = [
            (_bytes(name), json.dumps(pack(fields)), json.dumps(embedding))
            for name, fields, embedding in zip(names, metadata, embeddings.detach().float().cpu().tolist(), strict=True)
        ]
        statement = (
            "INSERT INTO {table} VALUES (%s, %s::jsonb, %s::vector) ON CONFLICT (name) DO UPDATE "
            "SET fields = EXCLUDED.fields, embedding = EXCLUDED.embedding"
        )
        with self._lock, self._connection.cursor() as cursor:
            cursor.executemany(self._sql(statement), rows)

    def remove(self, names: Sequence[str]) -> None:
        """Delete embeddings by name; unknown names are ignored."""
        encoded = list(map(_bytes, names))
        if self._read(lambda: self._rows("SELECT 1 FROM {table} WHERE name = ANY(%s) LIMIT 1", [encoded])):
            self._begin()
            self._connection.execute(self._sql("DELETE FROM {table} WHERE name = ANY(%s)"), [encoded])

    def flush(self) -> None:
        """Commit the changes."""
        with self._lock:
            if not self._is_changing:
                return
            self._connection.execute("UPDATE dualfuse_stores SET version = version + 1 WHERE name = %s", [self._name])
            self._create_graph()
            self._connection.commit()
            self._is_changing = False

    def search(self, embeddings: Tensor, k: int, where: Filter | None = None) -> Matches:
        """Return the k best matches of each of Q queries (Q, D), best first."""
        queries = embeddings.detach().float().cpu()
        check_width(queries, self._width)
        return self._read(lambda: self._search(queries.tolist(), k, where))

    def _search(self, queries: Sequence[Sequence[float]], k: int, where: Filter | None) -> Matches:
        """Search in the present transaction, so that version and matches belong together."""
        version = self._version()
        total = self._rows("SELECT count(*) FROM (SELECT FROM {table} LIMIT %s) AS found", [max(k, INDEXED)])[0][0]
        exact = bool(where) or total < INDEXED or 2 * k > MAX_EF
        found = [self._nearest(query, k, where, exact=exact) for query in queries]
        for number, matches in enumerate(found):
            if not exact and len(matches) < min(k, total):  # the graph holds removed rows
                found[number] = self._nearest(queries[number], k, where, exact=True)
        return Matches(found, fingerprint=self.fingerprint, version=version, exact=exact)

    def _nearest(self, query: Sequence[float], k: int, where: Filter | None, *, exact: bool) -> list[Match]:
        condition, values = to_sql(parse(where or {}))
        self._connection.execute(self._sql(f"SET LOCAL enable_indexscan = {'off' if exact else 'on'}"))
        self._connection.execute(self._sql(f"SET LOCAL hnsw.ef_search = {min(max(2 * k, 200), MAX_EF)}"))
        statement = f"SELECT name, embedding <#> %s::vector AS d FROM {{table}} WHERE {condition} ORDER BY d LIMIT %s"
        if not self._width:
            return []
        rows = self._rows(statement, [json.dumps(query), *values, k])
        return [Match(bytes(name).decode("utf-8", "surrogatepass"), -float(distance)) for name, distance in rows]

    def _create(self) -> None:
        """Create the tables, and check whose embeddings they hold."""
        import psycopg

        try:
            with self._connection.transaction():
                self._connection.execute("SELECT pg_advisory_xact_lock(hashtext('dualfuse'))")
                self._connection.execute(SCHEMA)
                self._connection.execute(
                    "INSERT INTO dualfuse_stores (name, fingerprint) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                    [self._name, self.fingerprint],
                )
                self._connection.execute(
                    self._sql(
                        "CREATE TABLE IF NOT EXISTS {table} (name bytea PRIMARY KEY, fields jsonb, embedding vector)"
                    )
                )
                found = "SELECT fingerprint, width FROM dualfuse_stores WHERE name = %s"
                ((fingerprint, self._width),) = self._connection.execute(found, [self._name]).fetchall()
        except psycopg.Error as error:
            raise DualfuseError(
                f"the store cannot be created in {self.location} ({str(error).strip()}); the database needs the "
                "extension pgvector, and its user the right to create tables"
            ) from error
        if fingerprint != self.fingerprint:
            raise DualfuseError(
                f"{self.location} holds embeddings of the model {fingerprint}, not of this one ({self.fingerprint}); "
                "use another store"
            )

    def _create_graph(self) -> None:
        ((count,),) = self._rows("SELECT count(*) FROM (SELECT FROM {table} LIMIT %s) AS found", [INDEXED])
        if count == INDEXED and self._width <= 2000:  # the widest that pgvector can index
            self._connection.execute(
                self._sql("CREATE INDEX IF NOT EXISTS {graph} ON {table} USING hnsw (embedding vector_ip_ops)")
            )

    def _set_width(self, width: int) -> None:
        """Fix the width of the empty table; at once, because readers would wait for the end of the transaction."""
        with self._lock, self._connection.transaction():
            self._connection.execute("UPDATE dualfuse_stores SET width = %s WHERE name = %s", [width, self._name])
            self._connection.execute(self._sql(f"ALTER TABLE {{table}} ALTER embedding TYPE vector({width:d})"))
        self._width = width

    def _version(self) -> str:
        statement = "SELECT version, width FROM dualfuse_stores WHERE name = %s"
        found = self._connection.execute(statement, [self._name]).fetchall()
        self._width = found[0][1] if found else 0  # another process may have added the first embeddings
        return str(found[0][0]) if found else ""

    def _begin(self) -> None:
        """Begin the transaction of the changes; one process at a time has it."""
        with self._lock:
            if not self._is_changing:
                self._connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [self._table])
                self._is_changing = True

    def _read(self, read: Callable[[], Result]) -> Result:
        """Return what ``read`` reads from one state of the database: that of the changes, or else the committed one."""
        with self._lock:
            if self._is_changing:
                return read()
            if self._connection.closed:  # the server was restarted
                self._connection = _connect(self._address)
            try:
                self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                return read()
            finally:
                self._connection.rollback()

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:  # Any: what the database takes and gives
        return self._connection.execute(self._sql(statement), values).fetchall()

    def _sql(self, statement: str) -> Any:  # Any: psycopg is imported where it is used
        from psycopg import sql

        graph = sql.Identifier(f"{self._table}_graph")
        return sql.SQL(statement).format(table=sql.Identifier(self._table), graph=graph)  # type: ignore[arg-type]


def _bytes(name: str) -> bytes:
    """Return a name as bytes, as names of files may be any."""
    return name.encode("utf-8", "surrogatepass")


def _connect(address: str) -> Connection[Any]:
    try:
        import psycopg
    except ModuleNotFoundError as error:
        raise MissingExtraError("the pgvector store", "pgvector") from error
    try:
        return psycopg.connect(address, connect_timeout=10)
    except psycopg.Error as error:
        raise DualfuseError(
            f"the database cannot be reached ({str(error).strip()}); give --store postgresql://USER@HOST/DATABASE, or "
            "set DATABASE_URL, or PGHOST and the other variables of libpq"
        ) from error
