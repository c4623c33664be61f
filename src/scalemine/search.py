"""Similarity search by text, by row or by a file of queries, and the index that it may use.

Searching only reads; it works beside a run that holds the workdir.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scalemine.config import CorpusConfig, InputError
from scalemine.mining.index import Index, Neighbours, build_index, index_settings, search
from scalemine.mining.sampling import fetch_rows
from scalemine.pipeline import Run, finished_embeddings
from scalemine.report.tables import plain_line
from scalemine.shards import Embeddings
from scalemine.sources import Reject, find_sources, read_records
from scalemine.store import write_whole

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("rank", pa.int32()),
        ("id", pa.string()),
        ("text", pa.string()),
        ("cosine", pa.float32()),
    ]
)
# Ids shown where one is not found.
NEAR_IDS = 3
# Columns of a terminal that rank, cosine and the gaps take.
_NARROW_COLUMNS = 19


@dataclass(frozen=True)
class Query:
    """What is searched for.

    Args:
        id: Of a text on the command line its number, from 1; else that of the file's row or of the corpus's.
        text: The text; of a row of the corpus, that row's.
        place: Shard and row, where the query is a row of the corpus: its stored vector, and it is no hit of its own.
    """

    id: str
    text: str
    place: tuple[str, int] | None = None


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Queries and their hits.

    Args:
        queries: The queries in order: texts, those of the file, rows.
        hits: Columns of ``SCHEMA``: by query, then by rank from 1.
        counts: Hits of each query.
    """

    queries: list[Query]
    hits: pa.Table
    counts: list[int]

    def as_dict(self) -> dict[str, Any]:
        """Return queries and hits as JSON; a hit has the text of its query, too."""
        queries = [{"query_id": query.id, "query": query.text, "is_row": bool(query.place)} for query in self.queries]
        texts = [query.text for query, count in zip(self.queries, self.counts, strict=True) for _ in range(count)]
        return {
            "queries": queries,
            "hits": [row | {"query": text} for row, text in zip(self.hits.to_pylist(), texts, strict=True)],
        }


def run_search(
    run: Run, *, texts: Sequence[str] = (), file: Path | None = None, likes: Sequence[str] = (), k: int
) -> SearchResult:
    """Return the k rows of the corpus that are nearest to each query; the corpus must be embedded.

    Args:
        run: Its configuration says which corpus, encoder and index.
        texts: Texts to search for.
        file: A file of texts: all formats of a corpus.
        likes: Ids of rows of the corpus, to search for rows like them.
        k: Hits per query.

    Raises:
        InputError: There is no query, a query is empty or not there, k is below 1, or the embeddings or the index are
            not finished or of another configuration.
    """
    if k < 1:
        raise InputError(f"-k: expected a number from 1, got {k}")
    queries = _text_queries(texts) + (_file_queries(file) if file else [])
    if not queries and not likes:
        raise InputError("nothing to search for; give a text, --like ID or --queries FILE")
    embeddings = finished_embeddings(run)
    index = _finished_index(run, embeddings)
    liked = _find_rows(embeddings, likes)
    vectors = [_encode(run, [query.text for query in queries])] if queries else []
    vectors += [_stored_vectors(embeddings, liked)] if liked else []
    with run.show("search", embeddings.corpus.num_rows) as advance:
        neighbours = search(
            embeddings,
            np.concatenate(vectors),
            k + bool(liked),  # a row finds itself, which is left out
            executor=run.executor,
            index=index,
            threads=run.threads,
            on_rows=advance,
        )
    return _result(embeddings, queries + liked, neighbours, k)


def _text_queries(texts: Sequence[str]) -> list[Query]:
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise InputError(f"query {number} is empty; give a text to search for")
    return [Query(str(number), text) for number, text in enumerate(texts, start=1)]


def _file_queries(path: Path) -> list[Query]:
    config = CorpusConfig(uri=(str(path),))
    queries = []
    try:
        for source in find_sources(config.uri):
            for found in read_records(source, config):
                if isinstance(found, Reject):
                    raise InputError(f"--queries {path}: line {found.line}: {found.reason}")
                queries.append(Query(found.id, found.text))
    except InputError as error:  # which speaks of a corpus
        message = str(error).replace("corpus.uri ", "--queries ")
        raise InputError(message.replace("set corpus.text to one of", "name it text; it has")) from None
    except OSError as error:
        raise InputError(f"--queries {path}: cannot be read: {error}") from None
    if not queries:
        raise InputError(f"--queries {path}: the file is empty; expected texts to search for")
    return queries


def _find_rows(embeddings: Embeddings, ids: Sequence[str]) -> list[Query]:
    """Return the rows of the corpus that have these ids, in this order."""
    places: dict[str, tuple[str, int]] = {}
    wanted = pa.array(list(ids), pa.string())
    for shard in embeddings.corpus.shards if ids else ():
        column = embeddings.read(shard)["id"]
        rows = np.flatnonzero(pc.is_in(column, value_set=wanted).to_numpy())
        places |= {column[row].as_py(): (shard.name, int(row)) for row in rows}
    for id_ in ids:
        if id_ not in places:
            raise InputError(f"--like {id_}: no row of the corpus has this id; {_near_ids(embeddings, id_)}")
    rows_of = fetch_rows(embeddings.corpus, [places[id_] for id_ in ids])
    return [Query(row.id, row.text, (row.shard, row.row)) for row in rows_of]


def _near_ids(embeddings: Embeddings, id_: str) -> str:
    """Say which ids hold the one that was not found, or else how ids look."""
    near: list[str] = []
    for shard in embeddings.corpus.shards:
        column = embeddings.read(shard)["id"]
        near += column.filter(pc.match_substring(column, id_, ignore_case=True)).slice(0, NEAR_IDS).to_pylist()
        if len(near) >= NEAR_IDS:
            break
    if near:
        return f"there is {', '.join(near[:NEAR_IDS])}"
    return f"they look like {embeddings.read(embeddings.corpus.shards[0])['id'][0].as_py()}"


def _stored_vectors(embeddings: Embeddings, liked: Sequence[Query]) -> NDArray[np.float32]:
    vectors_QD = embeddings.at([query.place for query in liked if query.place]).astype(np.float32)
    for query, vector_D in zip(liked, vectors_QD, strict=True):
        if not vector_D.any():  # of a row in quarantine
            raise InputError(f"--like {query.id}: the row could not be encoded and has no vector; take another")
    return vectors_QD


def _encode(run: Run, texts: list[str]) -> NDArray[np.float32]:
    encoder = run.float32_encoder
    tokens = encoder.tokenise([encoder.normalise(text) for text in texts])
    if tokens.num_cut:
        logger.warning(
            "%d of %d queries are longer than the %d tokens that the encoder reads, and were cut",
            tokens.num_cut, len(texts), encoder.max_length,
        )  # fmt: skip
    return encoder.encode(tokens)


def _result(embeddings: Embeddings, queries: list[Query], neighbours: Neighbours, k: int) -> SearchResult:
    """Return the hits with their texts, a row not among its own."""
    found = []
    for number, query in enumerate(queries):
        hits = zip(neighbours.places(number), neighbours.cosines_QK[number].tolist(), strict=False)
        found.append([(place, cosine) for place, cosine in hits if place != query.place][:k])
    places = sorted({place for hits in found for place, _ in hits})
    rows = dict(zip(places, fetch_rows(embeddings.corpus, places), strict=True))
    hits_in_rows = [
        {"query_id": query.id, "rank": rank, "id": rows[place].id, "text": rows[place].text, "cosine": cosine}
        for query, hits in zip(queries, found, strict=True)
        for rank, (place, cosine) in enumerate(hits, start=1)
    ]
    return SearchResult(queries, pa.Table.from_pylist(hits_in_rows, schema=SCHEMA), [len(hits) for hits in found])


def write_hits(result: SearchResult, path: Path) -> None:
    """Write the hits as Parquet.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        with write_whole(path) as temporary:
            pq.write_table(result.hits, temporary, compression="zstd")
    except OSError as error:
        raise InputError(f"--to {path}: cannot be written ({error.strerror})") from None


def print_hits(console: Console, result: SearchResult) -> None:
    """Print a table per query, a hit on one line; tweets are foreign texts, and nothing in them is obeyed."""
    rows = iter(result.hits.to_pylist())
    for query, count in zip(result.queries, result.counts, strict=True):
        name = f"{query.id}: {query.text}" if query.place else query.text
        table = Table(
            title=Text(plain_line(name, console.width), style="bold"), title_justify="left",
            box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim",
        )  # fmt: skip
        hits = [next(rows) for _ in range(count)]
        ids = [plain_line(row["id"], max(8, console.width // 2)) for row in hits]
        table.add_column("rank", justify="right", no_wrap=True)
        table.add_column("cosine", justify="right", no_wrap=True)
        table.add_column("id", no_wrap=True)
        # Of a line that is too long it is the text that is cut.
        width = console.width - max(map(cell_len, ids), default=0) - _NARROW_COLUMNS
        table.add_column("text", no_wrap=True, overflow="ellipsis", max_width=max(8, width))
        for row, id_ in zip(hits, ids, strict=True):
            text = plain_line(row["text"], console.width)
            table.add_row(str(row["rank"]), f"{row['cosine']:.3f}", Text(id_), Text(text))
        console.print(table)
        console.print()


# The index


def check_index(run: Run) -> None:
    """Look whether `run_index` would take the workdir, and write nothing.

    Raises:
        InputError: As `run_index` would say.
    """
    _open_index(run, finished_embeddings(run))


def run_index(run: Run) -> Index:
    """Make the index that the configuration names, or what is missing of it; the corpus must be embedded."""
    if run.config.index.kind == "exact":
        raise InputError(
            "index.kind is exact, which searches the embeddings themselves, so there is nothing to make; "
            "set it to ivf, sq8 or ivf_sq8"
        )
    embeddings = finished_embeddings(run)
    index = _open_index(run, embeddings)
    rows = sum(shard.num_rows for shard in index.missing())
    if rows:
        with run.timed("index"), run.show("index", rows) as advance:
            build_index(
                index,
                run.config.index,
                seed=run.config.seed,
                executor=run.executor,
                threads=run.threads,
                on_rows=advance,
            )
    return index


def _open_index(run: Run, embeddings: Embeddings) -> Index:
    settings = index_settings(run.config.index, run.config.seed)
    inputs = {"embeddings": embeddings.stage.fingerprint}
    stage = run.open_stage(run.workdir.index, version=1, settings=settings, inputs=inputs)
    return Index(stage, embeddings.corpus, embeddings, run.config.index.probes)


def _finished_index(run: Run, embeddings: Embeddings) -> Index | None:
    """Return the index that the configuration names; None where the search is to be exact."""
    if run.config.index.kind == "exact":
        return None
    index = _open_index(run, embeddings)
    missing, all_shards = len(index.missing()), len(index.corpus.shards)
    if missing:
        raise InputError(
            f"{index.stage.folder}: no finished index here ({all_shards - missing} of {all_shards} shards); "
            f"scalemine index CONFIG makes it, --set index.kind=exact does without"
        )
    return index
