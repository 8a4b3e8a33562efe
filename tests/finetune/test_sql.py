"""What a model writes is run without harm and without end, and results are compared as the questions mean them."""

import itertools
import re
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.finetune import sql
from lora_lab.finetune.sql import MAX_CHARACTERS, Failure, Result, open_database, run_query, same_result

SCRIPT = """
CREATE TABLE hotel (id int, name text, city text, price int);
INSERT INTO hotel VALUES (7, 'Grand', 'Rome', 90), (3, 'Eden', 'Oslo', 120), (9, 'Summit', 'Rome', 90);
CREATE TABLE room (size real, hotel_id int);
INSERT INTO room VALUES (10.5, 7), (20.5, 3), (30.5, 3);
"""


@pytest.fixture
def hotels():
    connection = open_database(SCRIPT)
    yield connection
    connection.close()


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT name FROM hotel", [("Grand",), ("Eden",), ("Summit",)]),
        ("SELECT COUNT(*) FROM hotel;", [(3,)]),
        ("SELECT city, AVG(price) FROM HOTEL GROUP BY city ORDER BY city", [("Oslo", 120.0), ("Rome", 90.0)]),
        ("SELECT h.name FROM hotel AS h JOIN room r ON r.hotel_id = h.id WHERE r.size > 30", [("Eden",)]),
        ("SELECT name FROM hotel WHERE price = (SELECT MAX(price) FROM hotel)", [("Eden",)]),
        ("WITH cheap AS (SELECT * FROM hotel WHERE price < 100) SELECT COUNT(*) FROM cheap", [(2,)]),
        ("SELECT name FROM hotel WHERE name LIKE 'S%' OR lower(city) = 'oslo' ORDER BY 1", [("Eden",), ("Summit",)]),
        ("SELECT RANK() OVER (ORDER BY price) FROM hotel", [(1,), (1,), (3,)]),
        ("SELECT name FROM hotel WHERE 0", []),
        ("VALUES (1, 'x')", [(1, "x")]),
    ],
)
def test_plain_reads_give_their_rows(hotels, sql, rows):
    result = run_query(hotels, sql)
    assert result.failure is None, result.message
    assert list(result.rows) == rows
    assert result.columns == (len(rows[0]) if rows else 1)


FORBIDDEN = [
    "DELETE FROM hotel",
    "INSERT INTO hotel VALUES (1, 'x', 'x', 1)",
    "UPDATE hotel SET price = 0",
    "REPLACE INTO hotel VALUES (1, 'x', 'x', 1)",
    "DROP TABLE hotel",
    "CREATE TABLE other (a)",
    "CREATE TEMP TABLE other (a)",
    "CREATE VIEW v AS SELECT 1",
    "CREATE TRIGGER t AFTER INSERT ON hotel BEGIN SELECT 1; END",
    "CREATE VIRTUAL TABLE v USING fts5(a)",
    "CREATE INDEX i ON hotel (price)",
    "ALTER TABLE hotel ADD COLUMN x",
    "PRAGMA query_only = OFF",
    "PRAGMA writable_schema = ON",
    "PRAGMA table_info(hotel)",
    "SELECT * FROM pragma_table_info('hotel')",
    "SELECT COUNT(*) FROM pragma_database_list",
    "ATTACH DATABASE 'stolen.db' AS other",
    "DETACH DATABASE main",
    "VACUUM",
    "VACUUM INTO 'stolen.db'",
    "BEGIN",
    "SAVEPOINT s",
    "ANALYZE",
    "SELECT sql FROM sqlite_master",
    "SELECT load_extension('evil')",
    "SELECT randomblob(1000000000)",
    "SELECT zeroblob(1000000000)",
    "SELECT hex(zeroblob(1000000000))",
    "SELECT printf('%.*c', 1000000000, 'x')",
    "SELECT RANDOM()",
    "SELECT name FROM hotel ORDER BY random()",
    "SELECT date('now')",
    "SELECT CURRENT_TIMESTAMP",
    "SELECT changes(), last_insert_rowid()",
    "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT COUNT(*) FROM r",
    "WITH r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n FROM r LIMIT 10",
]


@pytest.mark.parametrize("sql", FORBIDDEN)
def test_all_else_is_refused(hotels, sql, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = run_query(hotels, "SELECT * FROM hotel")
    assert run_query(hotels, sql).failure is Failure.FORBIDDEN
    assert run_query(hotels, "SELECT * FROM hotel") == before
    assert not list(tmp_path.iterdir())


def test_writing_is_refused_even_without_the_authorizer(hotels):
    hotels.set_authorizer(None)
    result = run_query(hotels, "DELETE FROM hotel")
    assert result.failure is not None
    assert "readonly" in result.message
    assert run_query(hotels, "SELECT COUNT(*) FROM hotel").rows == ((3,),)


@pytest.mark.parametrize(
    ("sql", "failure"),
    [
        ("", Failure.EMPTY),
        ("  \n ", Failure.EMPTY),
        (";", Failure.EMPTY),
        ("-- SELECT 1", Failure.EMPTY),
        ("SELEC name FROM hotel", Failure.SYNTAX),
        ("SELECT name FROM", Failure.SYNTAX),
        ("SELECT 'never closed FROM hotel", Failure.SYNTAX),
        ("SELECT \0 1", Failure.SYNTAX),
        ("The hotels are in Rome.", Failure.SYNTAX),
        ("SELECT stars FROM hotel", Failure.UNKNOWN_NAME),
        ("SELECT name FROM motel", Failure.UNKNOWN_NAME),
        ("SELECT MEDIAN(price) FROM hotel", Failure.UNKNOWN_NAME),
        ("SELECT name FROM hotel a, hotel b", Failure.UNKNOWN_NAME),
        ("SELECT 1; SELECT 2", Failure.STATEMENTS),
        ("SELECT 1; DROP TABLE hotel", Failure.STATEMENTS),
        ("SELECT name FROM hotel WHERE price = ?", Failure.OTHER),
        ("SELECT CAST(x'ff' AS text)", Failure.OTHER),
        ("SELECT ABS(-9223372036854775808)", Failure.OTHER),
        ("SELECT '\ud800'", Failure.OTHER),
        ("SELECT 1 " + "+ 1" * 200, Failure.TOO_LARGE),
        ("SELECT " + "1," * 60 + "1", Failure.TOO_LARGE),
        ("SELECT 1" + " " * MAX_CHARACTERS, Failure.TOO_LARGE),
        ("SELECT 1 UNION SELECT 2 UNION SELECT 3 UNION SELECT 4", Failure.TOO_LARGE),
    ],
)
def test_failures_are_named(hotels, sql, failure):
    result = run_query(hotels, sql)
    assert result.failure is failure, result.message
    assert (result.rows, result.columns) == ((), 0)


CROSS = "SELECT COUNT(*) FROM " + ", ".join(f"hotel h{i}" for i in range(20))


@pytest.mark.timeout(20)
def test_a_query_without_end_is_stopped_by_its_steps(hotels):
    assert run_query(hotels, CROSS, time_limit=1e9).failure is Failure.TOO_LONG
    assert run_query(hotels, "SELECT COUNT(*) FROM hotel").rows == ((3,),)  # and the next one starts afresh


def test_the_step_limit_counts_steps_and_not_time(hotels):
    sql = "SELECT COUNT(*) FROM " + ", ".join(f"hotel h{i}" for i in range(7))  # 3**7 rows
    failures = {run_query(hotels, sql, step_limit=2_000).failure for _ in range(20)}
    assert failures == {Failure.TOO_LONG}
    assert {run_query(hotels, sql).rows for _ in range(20)} == {((3**7,),)}


@pytest.mark.timeout(20)
def test_the_time_limit_stands_behind_the_steps(hotels):
    start = time.monotonic()
    assert run_query(hotels, CROSS, step_limit=10**15, time_limit=0.05).failure is Failure.TOO_LONG
    assert time.monotonic() - start < 10


def test_too_many_rows_are_a_failure_and_the_limit_itself_is_not(hotels):
    assert run_query(hotels, "SELECT 1 FROM hotel", row_limit=2).failure is Failure.TOO_MANY_ROWS
    assert len(run_query(hotels, "SELECT 1 FROM hotel", row_limit=3).rows) == 3
    assert run_query(hotels, CROSS.replace("COUNT(*)", "1")).failure is Failure.TOO_MANY_ROWS


DOUBLED = "name"
for _ in range(4):
    DOUBLED = f"replace({DOUBLED}, 'a', 'aaaaaaaaaaaaaaaaaaaa')"


@pytest.mark.parametrize("sql", [f"SELECT {DOUBLED} FROM hotel", f"SELECT length({DOUBLED}) FROM hotel"])
def test_no_value_grows_without_bound(hotels, sql):
    assert run_query(hotels, sql).failure is Failure.TOO_LARGE


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "sql",
    [
        # Each SELECT names the one before it as often as it can: 64 * 64 copies before the first step.
        f"WITH a AS (SELECT 1), b AS (SELECT 1 FROM {','.join('a' * 64)}) SELECT 1 FROM {','.join('b' * 64)}",
        # Each names it twice; a SELECT more and the copies double.
        "WITH a AS (SELECT 1)"
        + "".join(f", {n} AS (SELECT 1 FROM {m}, {m} x)" for m, n in itertools.pairwise("abcdefghi")),
        "SELECT name LIKE '" + "%a" * 45 + "b' FROM hotel",
        "SELECT 1 FROM hotel WHERE " + " OR ".join(["price = 1"] * 30),
        "SELECT " + "(" * 200 + "1" + ")" * 200,
        "SELECT name FROM hotel WHERE price IN (" + ",".join("1" * 200) + ")",
        "SELECT group_concat(a.name) FROM hotel a, hotel b, hotel c, hotel d, hotel e, hotel f, hotel g, hotel h",
    ],
)
def test_nothing_hangs_before_or_between_steps(hotels, sql):
    run_query(hotels, sql)


MEMORY = """
import resource, runpy, sys
sql = runpy.run_path(sys.argv[1], run_name="sql")
rows = "CREATE TABLE t (a text);" + "INSERT INTO t VALUES ('a');" * 18
unit = 1 if sys.platform == "darwin" else 1024
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = sql["run_query"](sql["open_database"](rows), sys.argv[2])
print(result.failure.value, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit)
"""


def test_a_query_that_sorts_long_rows_stays_within_its_memory():
    pytest.importorskip("resource")  # Windows has none
    long = "replace(replace('" + "a" * 60 + "', 'a', 'aaaaaaaa'), 'a', 'aaaaaaaa')"
    query = f"SELECT x FROM (SELECT {long} x FROM t a, t b, t c, t d, t e) ORDER BY x"
    command = [sys.executable, "-c", MEMORY, sql.__file__, query]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    failure, size = done.stdout.rsplit(maxsplit=1)
    assert failure == "too many steps"
    assert int(size) < 200e6


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="script must be SQL that SQLite can run, got 'CREATE TABL'"):
        open_database("CREATE TABL")
    connection = open_database("")
    for name in ("step_limit", "time_limit", "row_limit"):
        with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
            run_query(connection, "SELECT 1", **{name: 0})
    connection.close()


WORDS = re.findall(
    r"\S+",
    """SELECT FROM WHERE hotel room name city price size * ( ) , ; = > < 'Rome' 90 COUNT AVG MAX GROUP BY ORDER DESC
    LIMIT JOIN ON UNION ALL WITH AS AND NOT IN LIKE CASE WHEN THEN END DELETE UPDATE SET DROP PRAGMA ATTACH
    EXPLAIN || -- /*""",
)


@given(st.text(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join))
def test_no_text_raises_or_changes_anything(sql):
    connection = open_database(SCRIPT)
    before = connection.total_changes
    result = run_query(connection, sql)
    assert (result.failure is None) == (result.columns > 0)
    assert connection.total_changes == before
    assert run_query(connection, "SELECT COUNT(*), SUM(price) FROM hotel").rows == ((3, 300),)
    connection.close()


def result(*rows):
    return Result(rows, len(rows[0]) if rows else 1)


@pytest.mark.parametrize(
    ("got", "want", "unordered", "ordered"),
    [
        (result((1,), (2,)), result((1,), (2,)), True, True),
        (result((2,), (1,)), result((1,), (2,)), True, False),
        (result((1,), (1,), (2,)), result((1,), (2,), (2,)), False, False),  # as multisets, not as sets
        (result((1,)), result((1,), (1,)), False, False),
        (result((3,)), result((3.0,)), True, True),
        (result((0.1 + 0.2,)), result((0.3,)), True, True),
        (result((3.001,)), result((3,)), False, False),
        (result(("3",)), result((3,)), False, False),
        (result((None,)), result((None,)), True, True),
        (result((None,)), result((0,)), False, False),
        (result((None,)), result(("",)), False, False),
        (result((b"x",)), result(("x",)), False, False),
        (result(("Rome",)), result(("rome",)), False, False),
        (result((1, "a"), (2, "b")), result(("a", 1), ("b", 2)), True, True),  # columns in another order
        (result((1, "a"), ("b", 2)), result(("a", 1), ("b", 2)), False, False),  # but in the same for all rows
        (result((1, 1)), result((1,)), False, False),
        (result(), result(), True, True),
        (result((1,)), result(), False, False),
        (Result((), 2), Result((), 1), False, False),
        (Result(failure=Failure.SYNTAX), Result(failure=Failure.SYNTAX), False, False),
        (result((1.0, "b"), (1.0 + 1e-12, "a")), result((1.0, "a"), (1.0 + 1e-12, "b")), True, False),
        (result((1, 2, 3, 4, 5)), result((1, 2, 3, 4, 5)), True, True),
    ],
)
def test_same_result(got, want, unordered, ordered):
    assert same_result(got, want, ordered=False) is unordered
    assert same_result(got, want, ordered=True) is ordered
    assert same_result(want, got, ordered=False) is unordered


ROWS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from("ab"), st.sampled_from([None, 0])), max_size=4)


@given(ROWS, ROWS, st.permutations(range(3)), st.randoms())
def test_same_result_agrees_with_counting(left, right, order, rng):
    rows = [tuple(row[i] for i in order) for row in left]
    rng.shuffle(rows)
    assert same_result(Result(tuple(rows), 3), Result(tuple(left), 3), ordered=False)
    counted = any(
        Counter(tuple(row[i] for i in p) for row in left) == Counter(right) for p in itertools.permutations(range(3))
    )
    assert same_result(Result(tuple(left), 3), Result(tuple(right), 3), ordered=False) == counted
