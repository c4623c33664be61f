from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from scalemine.shards import matrix, matrix_column, read_arrow, write_arrow


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20), st.integers(1, 5), st.sampled_from(["f2", "i2", "f4"]), st.data())
def test_matrix_column_round_trip(num_rows, width, kind, data):
    values = np.arange(num_rows * width).reshape(num_rows, width).astype(kind)
    valid = np.array(data.draw(st.lists(st.booleans(), min_size=num_rows, max_size=num_rows)), bool)
    column = matrix_column(values, valid)
    assert column.null_count == (~valid).sum()
    assert column.to_pylist() == [row.tolist() if ok else None for row, ok in zip(values, valid, strict=True)]
    start = data.draw(st.integers(0, num_rows))
    stop = data.draw(st.integers(start, num_rows))
    for found, rows in (
        (pa.chunked_array([column]), slice(None)),
        (pa.chunked_array([column]).slice(start, stop - start), slice(start, stop)),
        (pa.chunked_array([column[:start], column[start:]]), slice(None)),
    ):
        back, ok = matrix(found)
        assert back.dtype == values.dtype
        assert np.array_equal(ok, valid[rows])
        assert np.array_equal(back[ok], values[rows][valid[rows]])


def test_matrix_column_of_a_transposed_matrix():
    values = np.arange(6, dtype=np.int16).reshape(2, 3).T
    assert matrix_column(values, np.ones(3, bool)).to_pylist() == [[0, 3], [1, 4], [2, 5]]


def test_arrow_file_round_trip(tmp_path):
    values = np.arange(20, dtype=np.float16).reshape(5, 4)
    valid = np.array([True, False, True, True, False])
    table = pa.table({"id": list("abcde"), "vector": matrix_column(values, valid)})
    write_arrow(tmp_path / "sub" / "x.arrow", table)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["x.arrow"]
    back = read_arrow(tmp_path / "sub" / "x.arrow")
    assert back["id"].to_pylist() == list("abcde")
    found, ok = matrix(back["vector"])
    assert np.array_equal(ok, valid)
    assert np.array_equal(found[ok], values[valid])
