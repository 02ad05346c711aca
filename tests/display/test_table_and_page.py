"""Tables in three forms, and a page on which nothing hostile acts."""

from disa.display.page import FoldedText, PageSection, PageText, cut_text, page, visible
from disa.display.table import Table, aligned_columns


def test_text_and_markdown_show_the_same_cells():
    rows = [["method", "x"], ["disa *", "0.5"], ["g", "1"]]
    assert aligned_columns(rows) == "method  x\ndisa *  0.5\ng       1"
    assert aligned_columns(rows, numbers=True) == "method    x\ndisa *  0.5\ng         1"
    assert Table(rows).markdown() == "| method | x |\n| --- | --- |\n| disa * | 0.5 |\n| g | 1 |"
    table = Table(rows, "Title", "What it is.", ["One.", "Two."])
    assert table.text() == f"What it is.\n{aligned_columns(rows)}\nOne.\nTwo."
    assert table.markdown().startswith("What it is.\n\n| method") and table.markdown().endswith(
        "| g | 1 |\n\nOne. Two."
    )


def test_a_cell_cannot_end_its_column():
    assert Table([["a|b"], ["c\nd"]]).markdown() == "| a\\|b |\n| --- |\n| c<br>d |"


def test_long_text_is_cut_and_says_so():
    assert cut_text("a" * 10 + "<", limit=10) == "a" * 10 + " … (1 more characters)"
    assert cut_text("a" * 10, limit=10) == "a" * 10


def test_characters_that_hide_or_turn_what_follows_are_shown_as_code_points():
    assert visible("a\u202eb\x00\ud800\n\tc") == "a<U+202E>b<U+0000><U+D800>\n\tc"


def test_everything_on_a_page_is_text():
    hostile = "</p><script>alert(1)</script>\u202e"
    table = Table([[hostile, hostile], [hostile, hostile]], hostile, hostile, [hostile])
    parts = [PageText([hostile]), PageText([hostile] * 2), table, FoldedText(hostile, hostile)]
    written = page(hostile, hostile, [PageSection(hostile, parts)])
    assert written.count("<script>") == 1 and "alert(1)</script>" not in written
    # Title, heading, lead, contents, section, 3 lines, caption, the table's region, 4 cells, note, 2 of the fold.
    assert written.count("&lt;script&gt;alert(1)&lt;/script&gt;&lt;U+202E&gt;") == 17


def test_a_section_without_parts_is_left_out_of_page_and_contents():
    written = page("t", "l", [PageSection("Here", [PageText(["x"])]), PageSection("Not here", [])])
    assert 'href="#here"' in written and "Not here" not in written
