"""Heat map and tables: aligned for every script, colours on request, no control characters of texts."""

import re

import numpy as np
import pytest
from isogloss import Neighbor
from isogloss.cli.render import aligned, fitted, heat_map, neighbors_table, pair_table, vector_table, width
from isogloss.errors import printable

ANSI = re.compile(r"\x1b\[[0-9;]*m")
GREETINGS = ["Good night", "おやすみなさい", "शुभ रात्रि", "تصبح على خير", "Cafe\u0301"]


def test_a_heat_map_of_texts_with_each_other_has_one_list() -> None:
    """Rows and columns have the same numbers, and the rows' labels serve both."""
    values = [[1, 0.81, -0.07], [0.81, 1, 0.1], [-0.07, 0.1, 1]]
    labels = ["Good night", "Gute Nacht", "The stock market fell"]
    assert heat_map(values, labels, labels, colour=False) == (
        "                              0      1      2\n"
        "0  Good night              1.00   0.81  -0.07\n"
        "1  Gute Nacht              0.81   1.00   0.10\n"
        "2  The stock market fell  -0.07   0.10   1.00\n"
    )


def test_a_heat_map_of_two_sides_lists_the_columns_first() -> None:
    """Column labels that differ from the row labels precede the table."""
    assert heat_map([[0.5, 12.25]], ["a"], ["Gute Nacht", "おやすみ"], colour=False) == (
        "0  Gute Nacht\n1  おやすみ\n\n          0      1\n0  a   0.50  12.25\n"
    )


@pytest.mark.parametrize("max_width", [1, 20, 40, 60, 80, 200])
def test_a_heat_map_continues_in_further_tables_if_it_is_too_wide(max_width: int) -> None:
    """All scores are printed once, in lines of at most max_width as long as one score and its label fit."""
    values = np.arange(48).reshape(4, 12) / 100
    drawn = heat_map(values, ["a long label"] * 4, ["b"] * 12, colour=False, max_width=max_width)
    table = drawn.partition("\n\n")[2]
    assert sorted(re.findall(r"\d\.\d\d", table)) == [f"{value:.2f}" for value in values.ravel()]
    assert max(map(width, table.splitlines())) <= max(max_width, 18)


def test_scores_that_round_to_zero_have_no_sign() -> None:
    """A small negative score is printed as 0.00."""
    assert heat_map([[-0.001]], ["a"], ["a"], colour=False) == "         0\n0  a  0.00\n"
    assert pair_table(np.array([-0.0001], np.float32), ["a"], ["b"], colour=False) == "  0.000  a  b\n"
    assert neighbors_table([Neighbor(0, "a", -0.0001)], colour=False).endswith(" 0.000    0  a\n")


def test_a_heat_map_without_rows_is_empty() -> None:
    """No rows are not an error."""
    assert heat_map(np.zeros((0, 0)), [], [], colour=True) == "\n"


def test_colours_do_not_change_the_text() -> None:
    """Without its colours, the coloured map starts with the plain one; higher scores have another colour."""
    labels = ["a", "b"]
    plain = heat_map([[1, 0], [0, 1]], labels, labels, colour=False)
    coloured = heat_map([[1, 0], [0, 1]], labels, labels, colour=True)
    bare = [line.rstrip() for line in ANSI.sub("", coloured).splitlines()]
    assert bare[:3] == plain.splitlines()
    assert "\x1b" not in plain
    assert "48;5;221m 1.00" in coloured
    assert "48;5;17m 0.00" in coloured


@pytest.mark.parametrize("colour", [False, True])
def test_columns_are_aligned_in_every_script(colour: bool) -> None:
    """Labels with wide characters, combining marks or right-to-left letters end in the same column."""
    drawn = heat_map(np.full((5, 5), 0.5), GREETINGS, GREETINGS, colour=colour)
    rows = ANSI.sub("", drawn).splitlines()[1:6]
    assert {width(row.rstrip()) for row in rows} == {width(rows[0].rstrip())}


def test_right_to_left_labels_are_isolated() -> None:
    """Isolates keep terminals that reorder text from moving the scores beside an Arabic label."""
    assert "\u2068تصبح على خير\u2069" in heat_map([[1]], ["تصبح على خير"], ["تصبح على خير"], colour=False)


def test_the_table_of_neighbours_is_aligned() -> None:
    """Score, row and text are aligned, best first; vectors have no text."""
    found = [Neighbor(2, "Où est la gare ?", 0.8312), Neighbor(117, None, -0.5)]
    assert neighbors_table(found, colour=False) == (
        "  score  row  text\n  0.831    2  Où est la gare ?\n -0.500  117\n"
    )
    assert ANSI.sub("", neighbors_table(found, colour=True)) == neighbors_table(found, colour=False)
    assert neighbors_table([], colour=True) == "no neighbours\n"


def test_the_table_of_pairs_is_aligned() -> None:
    """Score, query and candidate are aligned."""
    values = np.array([0.5, 1], np.float32)
    assert pair_table(values, ["a", "longer"], ["b", "c"], colour=False) == ("  0.500  a       b\n  1.000  longer  c\n")
    assert "\x1b" in pair_table(values, ["a", "longer"], ["b", "c"], colour=True)


def test_the_table_of_vectors_has_the_first_numbers() -> None:
    """The table has the first five numbers of each vector."""
    assert vector_table(np.ones((1, 2), np.float32), ["a"]) == "+1.0000 +1.0000  a\n"
    assert vector_table(np.ones((1, 8), np.float32), ["a"]).endswith("+1.0000 … 8 numbers  a\n")


def test_control_characters_of_texts_are_not_printed() -> None:
    """Escapes, line ends and directional marks of texts are replaced or removed."""
    nasty = "a\x1b[2Jb\nc\u202ed\u2066e\ud83df\x9b"
    shown = printable(nasty)
    assert shown == "a [2Jb cde\ufffdf "
    for drawn in (
        heat_map([[1]], [nasty], [nasty], colour=False),
        neighbors_table([Neighbor(0, nasty, 1)], colour=False),
    ):
        assert not set("\x1b\u202e\u2066\x9b") & set(drawn)
        assert drawn.count("\n") == 2


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("abc", 3),
        ("日本語", 6),
        ("Cafe\u0301", 4),
        ("한국", 4),
        ("\u1112\u1161\u11ab", 2),
        ("a\u200db", 2),
        ("ｱ", 1),
        ("", 0),
    ],
)
def test_width_counts_columns_of_a_terminal(text: str, columns: int) -> None:
    """East Asian characters have two columns, combining marks none."""
    assert width(text) == columns


def test_fitted_texts_have_the_exact_width() -> None:
    """Short texts are padded; long ones are cut between characters, with an ellipsis."""
    assert fitted("ab", 4) == "ab  "
    assert fitted("日本語", 4) == "日… "
    assert fitted("abcdef", 4) == "abc…"


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    """Cells are padded to the widest cell of their column."""
    assert aligned([("A", "B"), ("日本", "x")]) == "A     B\n日本  x\n"
